"""The fault table: every fault that batchd has an answer to, how it is injected, and what is expected then.

Tests say which rows they cover (`@pytest.mark.covers("W4")`); test_table.py holds that no row is without a test or
a reason. ledger.py writes README.md beside this file from these rows and from what a run of them saw. Here are only
words: W workers, S supervisor, C clients, D disk, J journal, T clock, I input, R result, H host, X the rest; P are
the promises of the pool, whose tests are often the same.
"""

from typing import Final, NamedTuple


class Row(NamedTuple):
    """One fault, or one promise of the pool."""

    fault: str
    injected: str
    expected: str
    instead: str = ""
    """Why it is not injected here, and what covers it instead; '' when tests inject it."""


FAULTS: Final[dict[str, Row]] = {
    "W1": Row(
        "worker killed while it runs jobs",
        "SIGKILL to random workers, and at any moment of a lease",
        "that job charged, each recorded once",
    ),
    "W2": Row(
        "worker killed while it writes a result",
        "SIGKILL at its n-th write for every n (strace), and in the middle of a frame of 1 MB",
        "torn report dropped, only jobs that were not reported run again",
    ),
    "W3": Row("worker killed while idle or being born", "SIGKILL at rest, template killed", "nobody is charged"),
    "W4": Row(
        "crash in native code",
        "null pointer, illegal instruction, os.abort",
        "signal named, Python stack kept, quarantined after 3",
    ),
    "W5": Row("job leaves the process", "os._exit(0), sys.exit, SystemExit", "never taken for success"),
    "W6": Row("job forks and the child returns", "os.fork", "child silenced, one result"),
    "W7": Row(
        "job leaves a daemon behind",
        "sleep in a session of its own, also in an environment of its own",
        "gone with its worker, or with the next supervisor if that died as well; nobody else's",
    ),
    "W8": Row(
        "worker stopped",
        "SIGSTOP, with and without a time limit",
        "time limit ends it; without one it is slow, not dead",
    ),
    "W9": Row(
        "native code holds the GIL",
        "C call that sleeps, C loop that computes",
        "busy, not dead; ended by its time limit alone",
    ),
    "W10": Row("job closes or writes to descriptors", "os.closerange, os.write", "worker replaced, guilty job found"),
    "W11": Row(
        "job takes too much memory",
        "600 MB at a stroke, and 10 MB after the other",
        "ended by its limit, both figures in the message",
    ),
    "W12": Row("job leaks descriptors", "open until EMFILE", "that job fails with the cause, the batch goes on"),
    "W13": Row(
        "workers die before they are ready",
        "import raises, leaves, dies or writes to every socket it finds, initializer raises or dies",
        "told once, no restart storm",
    ),
    "W14": Row(
        "result arrives after the time limit", "report left in the pipe over the kill", "one outcome, never two"
    ),
    "W15": Row(
        "results faster than the disk",
        "flood of large results while fdatasync takes 2 s, and while nothing can be committed",
        "pressure back: bounded memory, workers wait and go on; no deadlock",
    ),
    "S1": Row(
        "supervisor killed at any system call",
        "SIGKILL at the n-th call about files, pipes, sockets or processes of each thread (strace), for all n "
        "to its end; of hundreds in a row that look for leftovers in /proc each 16th; at random moments",
        "next one replays; lost 0, recorded twice 0",
    ),
    "S2": Row("supervisor stopped for a minute", "SIGSTOP, SIGCONT", "no false timeouts, nothing lost"),
    "S3": Row(
        "supervisor killed while jobs run long", "SIGKILL", "workers gone within 1 s, also those holding the GIL"
    ),
    "S4": Row("two supervisors on one journal", "second one started", "refused, first one named by pid"),
    "S5": Row(
        "supervisor killed for memory",
        "oom_score_adj 1000, control group with a memory limit (version 1 or 2, as there is; version 1 was seen)",
        "as S1",
    ),
    "S6": Row(
        "exception in a callback",
        "raised within one request; raised by a fault point of the pool in the middle of the loop",
        "that connection dropped, loop lives; the next supervisor replays",
    ),
    "S7": Row("signal storm", "500 SIGCHLD, SIGHUP, SIGTERM", "one drain, a second SIGTERM ends at once"),
    "S8": Row("package replaced under a supervisor", "client of another version", "named by both versions"),
    "S9": Row(
        "supervisor dies before it has read what workers reported",
        "SIGSTOP until every worker waits, then SIGKILL",
        "the next one records it, nothing of it runs again",
    ),
    "C1": Row(
        "client killed while it submits", "SIGKILL at random and at the n-th call (strace)", "resumed, none twice"
    ),
    "C2": Row("client stopped in the middle of a request", "SIGSTOP, half a frame sent", "everybody else is served"),
    "C2b": Row(
        "somebody holds the lock that commits need",
        "write transaction in a process that is stopped (no client of batchd's ever begins one)",
        "status and time limits go on, nothing is told to be recorded, whoever opens or changes that batch waits and "
        "nobody else does, all goes on when the holder is gone; calls that may wait for it stand in a list (lint)",
    ),
    "C3": Row(
        "reader stopped in a read transaction",
        "SIGSTOP",
        "batch goes on, the log and status name its pid and what ends it; growth bounded, space used again",
    ),
    "C4": Row("submit repeated after a lost reply", "same sequence sent again", "not doubled"),
    "C5": Row(
        "client forks with everything open, its threads reading",
        "os.fork, multiprocessing, preexec_fn; hundreds of times, and in the middle of a read",
        "nobody hangs, child refused, parent unharmed and its reads protected",
    ),
    "C6": Row(
        "garbage on the socket", "random bytes, changed requests, half a frame", "closed or refused; others served"
    ),
    "C7": Row(
        "another user connects",
        "process with another uid, once and again",
        "refused by SO_PEERCRED; the log names the first and counts the others",
    ),
    "D1": Row(
        "disk full at a commit",
        "small tmpfs, filled by others, by results, by both; stopped, cancelled, pruned, client killed meanwhile",
        "paused with a message, goes on when there is space; whoever gives up is let go, what was durable stays",
    ),
    "D2": Row("disk full before the first open", "small tmpfs, filled", "refused in words, no SIGBUS"),
    "D3": Row(
        "write error",
        "EIO at the n-th pwrite or fdatasync (strace), at all of one batch, at all from some moment on",
        "never acknowledged, replay, same results; other batches come to their end",
    ),
    "D4": Row(
        "power loss",
        "writes recorded by strace: each prefix rebuilt, un-synced ones dropped and reordered; "
        "a real file system shut down under two running batches",
        "everything acknowledged is there, the journal is well",
    ),
    "D5": Row(
        "slow disk",
        "each fdatasync and fsync takes 5 s (strace), during commits and while a batch is made",
        "status answered, signals heard, time limits kept meanwhile",
    ),
    "D6": Row(
        "read-only disk",
        "EROFS (strace), read-only mount, a real file system that turns read-only under a run",
        "readable, refusal in words, resumed afterwards",
    ),
    "D7": Row("journal on a network file system", "mount table that says so", "refused before anything is made"),
    "D8": Row(
        "full disk that shows as EIO",
        "EIO at each write to the file of a batch from some moment on (strace), on a disk with space and on one with "
        "little; LMDB's errors for a short write",
        "full only where there is no space, and then paused; else as D3",
    ),
    "J1": Row(
        "bit flip",
        "every kind of page and record; free pages of a batch that runs",
        "found, range named, nothing wrong brought out, other batches run",
    ),
    "J2": Row("data file cut off", "truncated at many lengths", "told before it is mapped, no signal"),
    "J3": Row(
        "lock or data file deleted",
        "unlink and rename under a running batch, of its data file too; at rest",
        "that batch stops at once, with what to do; no other does; at rest it is made again; nothing lost",
    ),
    "J4": Row("map full", "small map", "grown, the transaction made whole"),
    "J5": Row("map grown by another process", "set_mapsize", "readers follow"),
    "J6": Row(
        "reader table full",
        "4096 readers, at rest and under a running batch",
        "error in words, never called damage; workers wait, nobody is charged; goes on when they are gone or killed",
    ),
    "J7": Row("newer format", "version raised", "refused with both versions"),
    "J8": Row(
        "value file torn, changed or missing",
        "its writers killed, bytes flipped, file cut off, deleted or replaced",
        "never named, or told by job and costs that job alone; what no record names is removed",
    ),
    "T1": Row(
        "wall clock jumps",
        "the time of day put forward and back by hours under every process (preloaded shim)",
        "durations unchanged, no limit fires or stalls, delayed jobs run in time",
    ),
    "T2": Row(
        "suspend and resume",
        "all processes stopped; afterwards the time of day is an hour on, the monotonic clock (shim) where it was",
        "as S2",
    ),
    "T3": Row("reboot", "recorder with another boot id, of a batch that ran", "not trusted: nobody is charged by it"),
    "I1": Row("input does not unpickle", "__reduce__ that raises", "that job fails with the cause"),
    "I2": Row("input unpickles endlessly", "nested 100,000 deep, one that kills its reader", "that job alone"),
    "R1": Row("result does not pickle", "lock, generator, __reduce__ that raises or dies", "that job fails"),
    "R2": Row("exception does not read back", "two-argument constructor, __setstate__ that dies", "kept as text"),
    "R3": Row("result of 2 GiB", "bytes(2 << 30)", "that job fails with the limit, supervisor stays small"),
    "H1": Row(
        "process or descriptor limit",
        "control group that allows 10 processes (as S5), RLIMIT_NPROC of another user, EMFILE",
        "fewer workers do all of it, the client is told once, nobody is charged",
    ),
    "H2": Row("50 CPU hogs on one core", "taskset", "no false kills"),
    "H3": Row(
        "SIGTERM with a budget of 10 s",
        "SIGTERM, to the supervisor alone and, as systemd stops a unit, to its workers too, before or after it",
        "drained, durable, gone in time (longer jobs are cut off by a second SIGTERM); workers that get it die, "
        "nobody is charged, their jobs run with the next start",
    ),
    "X1": Row("job writes garbage to descriptors 1 to 20", "os.write", "only what it printed changes"),
    "X2": Row("job ignores SIGTERM", "SIG_IGN, with a time limit", "ended all the same, with its children"),
    "X3": Row("job prints 100 MB", "print, and go on for a while", "capture stays small, last lines kept"),
    "X4": Row("job recurses without end", "Python recursion, C recursion", "RecursionError, or SIGSEGV named"),
    "X5": Row("job kills its supervisor each time", "SIGKILL from within", "quarantined, not an endless loop"),
    "X6": Row("old backup restored", "journal backup, put back later", "goes on from there"),
    "X7": Row("batch damaged beyond reading", "headers and trees overwritten", "salvage brings out what is readable"),
    "X8": Row(
        "space wanted back",
        "prune, also while a batch runs",
        "du shows it; a running batch is never touched; one made again has nothing of it",
    ),
    "X9": Row("backup while a batch runs", "journal backup", "reads as the journal did, goes on by itself"),
    "X10": Row("any bytes at a decoder", "fuzzing guided by coverage, Hypothesis", "a value or a typed error"),
    "X11": Row("all of it at once", "batchd chaos", "lost 0, recorded twice 0"),
    "X12": Row("any order of events", "seeded simulation", "every invariant holds"),
    "X13": Row(
        "files that others own, may write, or put a link in place of",
        "folder, journal.json, recorder, log of jobs",
        "refused in words before anything is written; what batchd makes is its owner's alone",
    ),
    "X14": Row(
        "a command is cut off",
        "SIGKILL to the supervisor, time limit, while it runs and has a child in the background",
        "it and its child are gone; it runs again, or has failed by its cause",
    ),
    "P1": Row("exactly the running job is charged", "SIGKILL, SIGSEGV, os._exit, abort", "others run once"),
    "P2": Row("no ambiguity at the edges", "SIGKILL at random moments", "none lost, none doubled"),
    "P3": Row("a lease blames one job", "poison in the middle of a lease", "finished neighbours keep their results"),
    "P4": Row("the cause of a death is named", "one job per cause", "signal, exit code, time limit, memory"),
    "P5": Row("poison is quarantined", "job that always crashes", "runs as often as allowed, others finish"),
    "P6": Row("no restart storm", "initializer that raises, or dies in each of 8 workers", "error soon, few starts"),
    "P7": Row("a time limit ends C code", "PyDLL.sleep, SIGTERM ignored", "ended within limit and grace"),
    "P8": Row(
        "a job's children die with it", "plain, own session, double fork, own environment", "none alive 1 s after"
    ),
    "P9": Row("no worker outlives the supervisor", "SIGKILL: idle, GIL held, writing a result", "gone within 1 s"),
    "P10": Row(
        "no replay while an old worker lives",
        "SIGSTOP to it, or its end of the lifeline closed; SIGKILL to the supervisor",
        "dead before replay",
    ),
    "P11": Row("template killed", "SIGKILL", "running jobs unharmed, next worker starts"),
    "P12": Row("any bytes on a worker's pipe", "garbage, truncated frames", "worker ended, cause named"),
    "P13": Row("the supervisor never unpickles", "result that kills its reader", "the client alone sees it"),
    "P14": Row("values that do not travel", "lambda, generator, __reduce__ that raises", "that job fails"),
    "P15": Row("stopped is noticed, slow is not dead", "SIGSTOP with and without a limit", "as W8"),
    "P16": Row("full pipes do not deadlock", "100 MB argument while 100 MB result", "both arrive"),
    "P17": Row("input is read lazily", "endless generator", "no further than the window"),
    "P18": Row("results are let go", "many large results", "memory flat"),
    "P19": Row("memory limit per job", "as W11", "ended, reported as memory"),
    "P20": Row("the supervisor is not the OOM killer's choice", "oom_score_adj read from /proc", "workers before it"),
    "P21": Row(
        "recycling loses nothing", "", "-", "workers are not recycled; each serves until it is stopped or dies"
    ),
    "P22": Row(
        "no inherited descriptors or locks", "descriptors of a worker listed", "only its own; template: 1 thread"
    ),
    "P23": Row("threads and CPUs are counted", "environment, made-up cgroups", "one BLAS thread, quota respected"),
    "P24": Row(
        "Ctrl-C",
        "typed at a terminal whose foreground batchd is (pty), once and twice",
        "one drain; a second aborts; neither supervisor nor workers hear of it",
    ),
    "P25": Row("interpreter exit without shutdown", "program ends", "pending work done, no noise"),
    "P26": Row(
        "nothing is left behind",
        "1,000 pools, some of them killed",
        "no process, zombie, shared memory, temporary file or descriptor more than before",
    ),
    "P27": Row("output and stack are captured", "segfault, prints", "both in the report, bounded"),
    "P28": Row("nested use", "executor within a job", "works"),
    "P29": Row("ENOSPC, EMFILE, EAGAIN on fork", "small tmpfs, limits", "job waits or fails, supervisor lives"),
    "P30": Row("clock jumps do not fire limits", "as T1, and under a job that is over its limit", "as T1"),
}

IDS: Final = frozenset(
    {f"{letter}{number}" for letter, last in zip("WSCDJTIRHXP", (15, 9, 7, 8, 8, 3, 2, 3, 3, 14, 30), strict=True)
     for number in range(1, last + 1)}
    | {"C2b"}
)  # fmt: skip
"""Every row there must be."""

FIGURES: Final = (
    "schedules simulated",
    "crash points enumerated",
    "states after a power loss",
    "real SIGKILLs",
    "bit flips",
    "fuzz inputs",
    "jobs checked",
    "lost",
    "doubled",
)
"""What a run counts, in the order it is shown."""
