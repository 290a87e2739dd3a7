"""The verbs: where each is carried out, and what it does in a sentence.

Nothing else is imported here, because `batchd --help` shows these and should cost little more than Python's start.
"""

USAGE = "batchd [-h] [--version] VERB ..."
DESCRIPTION = "Run a Python function or a command over many inputs on all cores of this machine, and lose nothing."
FIRST_RUN = "batchd run batchd.examples.demo:double --range 0:1000 --out doubled.jsonl"

VERBS = {
    "run": (
        "batchd.cli.run:run",
        "Run a task over inputs; the same command again continues where the journal stands.",
    ),
    "exec": (
        "batchd.cli.command:run_command",
        "Run a command over inputs, as `run` does a task: `batchd exec 'gzip -kf {}' --paths '*.log'`.",
    ),
    "ls": ("batchd.cli.inspect:ls", "List the batches of the journal."),
    "show": ("batchd.cli.inspect:show", "Show everything known about a batch, or about one job of it."),
    "results": ("batchd.cli.results:results", "Write a batch's results, or one job's, as JSON lines, in job order."),
    "failures": ("batchd.cli.inspect:failures", "Show a batch's failures, grouped by cause."),
    "logs": ("batchd.cli.logs:logs", "Show what a batch's jobs logged with batchd.current_job().log()."),
    "retry": (
        "batchd.cli.run:retry",
        "Run a batch's failed or quarantined jobs again, or those that have no outcome yet.",
    ),
    "rerun": ("batchd.cli.rerun:rerun", "Run one job again here, in the foreground, without recording anything."),
    "cancel": ("batchd.cli.steer:cancel", "Give a batch up: what runs is ended, what waits becomes cancelled."),
    "status": ("batchd.cli.steer:status", "Show what runs now: each worker, its job, memory and CPU."),
    "scale": ("batchd.cli.steer:scale", "Change the number of workers while they run."),
    "prune": (
        "batchd.cli.prune:prune",
        "Remove batches and give their space back; one goes only if everything agrees.",
    ),
    "journal": (
        "batchd.cli.journal:journal",
        "Look after the journal itself: find damage, bring out what can be had, copy all of it.",
    ),
    "chaos": (
        "batchd.cli.chaos:chaos",
        "Kill workers and supervisors at random while a batch runs, and check that nothing is lost.",
    ),
}


def overview() -> str:
    """What `batchd --help` says."""
    width = max(map(len, VERBS)) + 2
    lines = [f"  {name.ljust(width)}{sentence}" for name, (_, sentence) in VERBS.items()]
    head = [
        "usage: batchd [-h] [--version] VERB ...",
        "",
        DESCRIPTION,
        "",
        "verbs (batchd VERB --help tells the rest):",
    ]
    return "\n".join([*head, *lines, "", f"first run: {FIRST_RUN}"])
