"""What can be written on the command line, verb by verb: argparse is loaded by whoever reads arguments."""

import argparse
from collections.abc import Sequence

from batchd.cli.verbs import USAGE, VERBS
from batchd.settings import CRASHES_MAX


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the arguments. Inputs may stand behind options too, which argparse alone does not allow."""
    top = parser()
    args, rest = top.parse_known_args(argv)
    if rest and (args.verb not in {"run", "exec"} or any(text.startswith("-") and text != "-" for text in rest)):
        hint = " (a command stands in quotes, with its own arguments)" if args.verb == "exec" else ""
        top.error(f"unrecognized arguments: {' '.join(rest)}{hint}")
    if rest:
        args.inputs += rest
    return args


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line; what it says about itself is told before it is made."""
    top = argparse.ArgumentParser(prog="batchd", usage=USAGE, add_help=False)
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB", prog="batchd")
    _add_run(verbs)
    _add_reading(verbs)
    _add_logs(verbs)
    _add_steering(verbs)
    _add_rerun(verbs)
    _add_keeping(verbs)
    _add_chaos(verbs)
    return top


_Verbs = argparse._SubParsersAction  # noqa: SLF001  (argparse has no public name for it)


def _verb(verbs: "_Verbs[argparse.ArgumentParser]", name: str, text: str = "") -> argparse.ArgumentParser:
    """Add a verb, or an act of one; what it does is said in `verbs`, or given."""
    verb: argparse.ArgumentParser = verbs.add_parser(name, help=text, description=text or VERBS[name][1])
    verb.add_argument(
        "--journal", metavar="DIR", help="the journal's folder (default: $BATCHD_JOURNAL, or the user's)"
    )
    verb.add_argument("--json", action="store_true", help="answer in JSON, for programs")
    return verb


def _add_run(verbs: "_Verbs[argparse.ArgumentParser]") -> None:
    run = _verb(verbs, "run")
    run.add_argument("task", metavar="TASK", help="package.module:function or path/file.py:function")
    _add_input(run)
    run.add_argument("--arg", metavar="K=V", action="append", default=[], help="a constant keyword argument")
    run.add_argument("--accept-code", action="store_true", help="continue although the task's file changed")
    _add_running(run)
    command = _verb(verbs, "exec")
    command.add_argument(
        "command",
        metavar="COMMAND",
        help="in quotes, read by no shell; {} is the item, {/} without its folders, {.} without its suffix, "
        "{/.} without both, {//} its folder, {FIELD} a field of a row; without any of them the item comes last",
    )
    _add_input(command)
    _add_running(command, has_memory=False)  # What that says is that it sees the worker alone.


def _add_input(run: argparse.ArgumentParser) -> None:
    run.add_argument(
        "inputs",
        metavar="INPUT",
        nargs="*",
        help="a file: of .csv and .tsv a row is an item, of .jsonl and .ndjson a JSON value, else a line; .gz is "
        "unpacked; - is standard input",
    )
    run.add_argument("-0", "--null", action="store_true", help="inputs are separated by NUL, not by line ends")
    run._has_negative_number_optionals.clear()  # noqa: SLF001  (-0 is none: `--retries -1` is to be told what is wrong)
    run.add_argument("--paths", metavar="GLOB", action="append", default=[], help="file names, sorted; ** recurses")
    run.add_argument("--range", metavar="A:B[:STEP]", dest="range_spec", help="whole numbers, as Python's range")
    run.add_argument(
        "--cost",
        metavar="FIELD",
        help="what takes long, by this field of rows, or size with --paths: jobs so costly that the end "
        "would be uneven start first, the others in their order",
    )
    run.add_argument("--name", help="the batch's name; finds it again from anywhere")
    run.add_argument("--new", action="store_true", help="start a new batch even if this command has one")
    run.add_argument(
        "--skip-bad-input", action="store_true", help="leave out input that cannot be read, and say where"
    )
    run.add_argument(
        "--dry-run", action="store_true", help="show the first jobs, their number and the workers; run none"
    )


def _add_running(verb: argparse.ArgumentParser, *, has_memory: bool = True) -> None:
    verb.add_argument("-j", "--workers", metavar="N|N%|auto", default="auto", help="worker processes (auto)")
    verb.add_argument("--out", metavar="FILE", help="write results as JSON lines in input order; - for stdout")
    verb.add_argument("--retries", metavar="N", type=int, default=0, help="run a failed job again N times (0)")
    verb.add_argument("--timeout", metavar="TIME", help="per job, like 90s or 1h30m; C code is ended too")
    of_memory = "a job that goes past it fails, like 2G"
    verb.add_argument("--memory-per-job", metavar="SIZE", help=of_memory if has_memory else argparse.SUPPRESS)
    verb.add_argument("--max-failures", metavar="N|N%", help="stop the batch when more jobs than this failed")
    verb.add_argument(
        "--max-crashes",
        metavar="N",
        type=int,
        default=CRASHES_MAX,
        help="deaths of its worker a job may cause (%(default)s)",
    )
    verb.add_argument(
        "--keep-going", action="store_true", help="do not stop when the first jobs all fail the same way"
    )
    verb.add_argument("--start", choices=("fork", "fresh"), default="fork", help="how workers start: fresh is slower")
    verb.add_argument("--durability", choices=("disk", "process"), default="disk", help="process: not power-safe")
    verb.add_argument("-q", "--quiet", action="store_true", help="no progress, no summary")


def _add_reading(verbs: "_Verbs[argparse.ArgumentParser]") -> None:
    ls = _verb(verbs, "ls")
    ls.add_argument("--all", action="store_true", help="all of them, not only the latest")
    for name in ("show", "results", "failures"):
        verb = _verb(verbs, name)
        of_jobs = name != "failures"
        verb.add_argument(
            "batch",
            metavar="BATCH[:INDEX]" if of_jobs else "BATCH",
            nargs="?",
            default="last",
            help="id, unique prefix, name, or last" + "; INDEX: of one job only" * of_jobs,
        )
        if name == "failures":
            verb.add_argument("--all", action="store_true", help="every cause, and every index")
        if name == "results":
            verb.add_argument("--values", action="store_true", help="bare values of the jobs that succeeded")
            verb.add_argument("-o", "--output", metavar="FILE", help="write to a file instead of stdout")


def _add_logs(verbs: "_Verbs[argparse.ArgumentParser]") -> None:
    logs = _verb(verbs, "logs")
    logs.add_argument(
        "batch",
        metavar="BATCH[:INDEX]",
        nargs="?",
        default="last",
        help="id, unique prefix, name, or last; INDEX: of one job only",
    )
    logs.add_argument("-f", "--follow", action="store_true", help="go on as long as the batch runs")


def _add_steering(verbs: "_Verbs[argparse.ArgumentParser]") -> None:
    retry = _verb(verbs, "retry")
    retry.add_argument("batch", metavar="BATCH", help="id, unique prefix, name, or last")
    retry.add_argument("--failed", action="store_true", help="jobs that failed")
    retry.add_argument("--quarantined", action="store_true", help="jobs that crashed their worker too often")
    retry.add_argument("--cancelled", action="store_true", help="jobs that were cancelled")
    _add_running(retry)
    cancel = _verb(verbs, "cancel")
    cancel.add_argument("batch", metavar="BATCH", help="id, unique prefix, name, or last")
    cancel.add_argument("--reason", default="cancelled from the command line", help="kept with the batch")
    _verb(verbs, "status")
    scale = _verb(verbs, "scale")
    scale.add_argument("workers", metavar="N|+N|-N|N%|auto", help="how many, or how many more or fewer")


def _add_rerun(verbs: "_Verbs[argparse.ArgumentParser]") -> None:
    rerun = _verb(verbs, "rerun")
    rerun.add_argument("job", metavar="BATCH:INDEX", help="such as last:17; BATCH is an id, unique prefix, or name")
    rerun.add_argument("--pdb", action="store_true", help="end in the debugger where the job raises")


def _add_keeping(verbs: "_Verbs[argparse.ArgumentParser]") -> None:
    prune = _verb(verbs, "prune")
    prune.add_argument("batch", metavar="BATCH", nargs="*", help="id, unique prefix, name, or last")
    prune.add_argument("--older-than", metavar="TIME", help="not written for this long, like 30d")
    prune.add_argument(
        "--state",
        metavar="STATE",
        action="append",
        default=[],
        help="finished, cancelled, stopped, interrupted, damaged, or all of these; idle: queues in which "
        "nothing waits; several with commas (without names: finished,cancelled)",
    )
    prune.add_argument("--keep", metavar="N", type=int, help="keep the N that changed last")
    prune.add_argument("--max-size", metavar="SIZE", help="the oldest, until the journal is no larger, like 10G")
    prune.add_argument("--dry-run", action="store_true", help="only show what would be removed")
    prune.add_argument("-y", "--yes", action="store_true", help="do not ask")
    journal = verbs.add_parser("journal", description=VERBS["journal"][1])
    acts = journal.add_subparsers(dest="act", required=True, metavar="ACT")
    check = _verb(acts, "check", "Read every record and name what is damaged; exit code 3 if anything is.")
    check.add_argument("batch", metavar="BATCH", nargs="?", help="id, unique prefix, name, or last (all of them)")
    salvage = _verb(
        acts, "salvage", "Bring out what can be read of a damaged batch: outcomes, and inputs without one."
    )
    salvage.add_argument("batch", metavar="BATCH", help="id, unique prefix, name, or last")
    salvage.add_argument("--to", metavar="DIR", required=True, help="a new or empty folder for the files")
    backup = _verb(acts, "backup", "Copy the journal, also while it is used; the copy is a journal of its own.")
    backup.add_argument("to", metavar="DIR", help="a new or empty folder")


def _add_chaos(verbs: "_Verbs[argparse.ArgumentParser]") -> None:
    verb: argparse.ArgumentParser = verbs.add_parser("chaos", description=VERBS["chaos"][1])
    verb.add_argument("--duration", metavar="TIME", default="30s", help="for how long to kill (%(default)s)")
    verb.add_argument("--seed", metavar="N", type=int, help="who is killed when (drawn, and told at the end)")
    verb.add_argument("--jobs", metavar="N", type=int, help="how many (as many as keep the workers half busy)")
    verb.add_argument("--workers", metavar="N", type=int, help="how many (one a CPU, from 4 to 16)")
    verb.add_argument("--json", action="store_true", help="answer in JSON, for programs")
