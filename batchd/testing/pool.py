"""The simulated pool: it performs the scheduler's commands on simulated workers, each after a delay of its own.

It belongs to one supervisor and dies with it. The workers and their recorder slots do not.
"""

from batchd.core import commands as c
from batchd.core import events as ev
from batchd.settings import CANCEL_GRACE_S, CUT_WAIT_S
from batchd.testing.worker import Lane, SimulatedWorker
from batchd.testing.world import World


class SimulatedPool:
    """The workers of one supervisor."""

    def __init__(self, world: World, epoch: int) -> None:
        self.workers: dict[int, SimulatedWorker] = {}
        """Every worker whose recorder slot is not forgotten."""
        self._world = world
        self._epoch = epoch
        self._is_dead = False

    def perform(self, command: c.Command) -> None:
        """Carry out one command."""
        agenda, delay_s = self._world.agenda, self._world.delay()
        match command:
            case c.StartWorker(worker=number):
                self.workers[number] = worker = SimulatedWorker(self._world, number, self._epoch)
                agenda.after(0.003 + delay_s, worker.start)
            case c.GrantLease():
                self._grant(command)
            case c.CutLease():
                self._cut(command)
            case c.StopWorker(worker=number):
                agenda.after(self._world.delay_s, self.workers[number].close)  # Behind every lease in the pipe.
            case c.KillWorker(worker=number, why=why, has_grace=has_grace):
                if has_grace and self._world.chance.random() < 0.3:  # Its job watches for this.
                    delay_s += self._world.chance.random() * CANCEL_GRACE_S
                agenda.after(delay_s, self._kill, self.workers[number], why)
            case c.ForgetWorker(worker=number):
                assert self.workers.pop(number).is_dead, f"worker {number} is forgotten alive"
            case c.PutDown():
                raise AssertionError("the pool knows no batches")

    def end(self) -> None:
        """The supervisor is dead: its workers follow, after a few more jobs."""
        self._is_dead = True
        for worker in self.workers.values():
            at = self._world.chance.random() * 0.05
            self._world.agenda.after(at, worker.die, "killed by the lifeline")

    def _kill(self, worker: SimulatedWorker, why: str) -> None:
        if not self._is_dead:
            worker.die(why or "killed without blame", ordered=True)

    def _grant(self, grant: c.GrantLease) -> None:
        worker = self.workers[grant.worker]
        worker.slot.lanes[grant.lane] = Lane(
            grant.lease, grant.batch, grant.stint, grant.first, grant.stop, limit=grant.stop
        )
        self._world.agenda.after(self._world.delay_s / 2, worker.receive, grant)  # In order.

    def _cut(self, cut: c.CutLease) -> None:
        """Write the limit; what is certain is known only later."""
        lane = self.workers[cut.worker].slot.lanes[cut.lane]
        if lane.lease == cut.lease:
            lane.limit = cut.stop
            wait_s = CUT_WAIT_S * (1 + self._world.chance.random() ** 4 * 10)
            self._world.agenda.after(wait_s, self._read_again, cut)

    def _read_again(self, cut: c.CutLease) -> None:
        worker = self.workers.get(cut.worker)
        if self._is_dead or worker is None or worker.slot.lanes[cut.lane].lease != cut.lease:
            return
        lane, position = worker.slot.lanes[cut.lane], worker.slot.position
        if position is not None and position.lease > cut.lease:
            return  # It is through with the lease and has said so.
        stop = cut.stop
        if position is not None and position.lease == cut.lease:
            stop = max(stop, position.index + 1)
        lane.limit = lane.stop = min(stop, lane.stop)
        self._world.post(self._world.agenda.now, self._epoch, ev.LeaseCut(cut.worker, cut.lease, stop))
