"""Input that a killed command had on its way: the next command sees it, however late it is taken in."""

import json
import os
import signal
import subprocess
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from batchd.client.connection import connect
from batchd.core.events import Options
from batchd.edge import control
from batchd.edge.journal import BatchJournal
from batchd.formats.segment import input_blocks
from batchd.sources import TextSource
from tests.bench import key_spec
from tests.commands import Desk, until

pytestmark = pytest.mark.fault
LINES = ["a", "bb", "ccc", "dddd"]


def read_checkpoint(desk: Desk, lines: list[str]) -> Any:
    """Return the checkpoint of a reader that has read these lines."""
    file = desk.folder / "read.txt"
    file.write_text("".join(f"{line}\n" for line in lines))
    (block,) = TextSource([str(file)]).blocks()
    return block.checkpoint.to_json()


def killed_with_more_on_its_way(desk: Desk, command: list[str]) -> int:
    """Be a command that gave two lines, sent two more and died; return the pid of the stopped supervisor."""
    first = desk.start(*command, stdin=subprocess.PIPE)
    assert first.stdin is not None
    first.stdin.write("a\nbb\n")
    first.stdin.flush()
    until(lambda: done(desk) == 2, "both are done", first)
    first.kill()
    first.communicate()
    (batch,) = (desk.journal / "batches").iterdir()
    line = connect(desk.journal)
    options = {**asdict(Options()), "allowances": Options().allowances._asdict()}
    spec = {**asdict(key_spec("json:loads")), "payload": ""}
    line.ask("open", batch=batch.name, spec=None, options=options, key="another", key_spec=spec)
    pid = desk.supervisor()
    os.kill(pid, signal.SIGSTOP)
    ((_, body),) = input_blocks(LINES[2:])
    checkpoint = json.dumps(read_checkpoint(desk, LINES))
    line.tell("submit", body, batch=batch.name, client="killed", sequence=1, checkpoint=checkpoint)
    line.close()
    return pid


def done(desk: Desk) -> int:
    """Return how many jobs of the only batch are done."""
    for batch in (desk.journal / "batches").glob("[!.]*"):
        journal = BatchJournal(batch)
        journal.close()
        return journal.facts.done.size
    return 0


def connections(desk: Desk) -> int:
    """Return how many ends of the supervisor's socket there are, also those it has not accepted yet."""
    return Path("/proc/net/unix").read_text().count(str(desk.journal / control.SOCKET_NAME))


@pytest.mark.covers("C1")
def test_it_is_neither_lost_nor_read_again(desk: Desk) -> None:
    command = ["run", desk.task("text_length"), "-", "--name", "n", "--out", str(desk.folder / "out.jsonl")]
    pid = killed_with_more_on_its_way(desk, command)
    before = connections(desk)
    try:
        second = desk.start(*command, stdin=subprocess.PIPE)
        until(lambda: connections(desk) > before, "it has read the journal and waits for the supervisor", second)
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    _, told = second.communicate("".join(f"{line}\n" for line in LINES), timeout=60)
    assert second.returncode == 0, told
    assert "2 of 2 jobs were already done" in told
    assert desk.values() == [len(line) for line in LINES]
