"""What is kept of a run: a JSON file with every round, and the page people read, made from the same fields.

The page is a pure function of what the JSON file holds, so it can be written again from it.
"""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import plots
from benchmarks.machine import name_of

_NUMBERS = tuple(f"N{number}" for number in range(1, 13))
_PERCENT = ("share", "outside", "gaps", "busy", "client CPU")


def write(run: Mapping[str, Any], folder: Path) -> tuple[Path, Path]:
    """Write results/<date>-<machine>.json, the plots beside it, and RESULTS.md below `folder`; return both names.

    What this run did not measure is taken over from the last one on such a machine, with its own date.
    """
    results = folder / "results"
    results.mkdir(parents=True, exist_ok=True)
    machine = name_of(run["machine"])
    earlier = sorted(results.glob(f"*-{machine}.json"))
    run = merged(json.loads(earlier[-1].read_text("utf-8")) if earlier else {}, run)
    kept = results / f"{run['machine']['date'][:10]}-{machine}.json"
    kept.write_text(json.dumps(run, indent=1) + "\n", "utf-8")
    page = folder / "RESULTS.md"
    page.write_text(markdown(run, plots.write(run, results)), "utf-8")
    return kept, page


def merged(earlier: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, Any]:
    """The run, with the parts of an earlier one that it did not measure again."""
    contests = {(each["number"], each["title"]): each for each in earlier.get("contests", ())}
    contests |= {(each["number"], each["title"]): each for each in run["contests"]}
    versions = earlier.get("machine", {}).get("versions", {})  # Also of what this run did not use.
    anatomies = {name: run.get(name) or earlier.get(name) for name in ("anatomy", "profiles")}
    return {
        "machine": run["machine"] | {"versions": {**versions, **run["machine"]["versions"]}},
        "contests": sorted(contests.values(), key=lambda each: int(each["number"][1:])),
        **{name: found for name, found in anatomies.items() if found},
    }


def markdown(run: Mapping[str, Any], drawn: Collection[str] = ()) -> str:
    """The page, with the plots that were drawn."""
    lines = ["# Measured", "", *_head(run), "", *_summary(run["contests"])]
    for contest in run["contests"]:
        lines += ["", *_contest(contest, run["machine"]["cores"])]
        if (name := plots.name_of(contest)) in drawn:
            lines += ["", f"![{contest['number']}: {contest['title']}](results/{name})"]
    if run.get("anatomy"):
        lines += ["", *_anatomy(run["anatomy"], run["machine"]["cores"])]
    for profile in run.get("profiles", ()):
        lines += ["", *_profile(profile, run["machine"]["cores"])]
    return "\n".join(lines) + "\n"


def _head(run: Mapping[str, Any]) -> Iterator[str]:
    machine = run["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    yield "Interleaved rounds, medians, ratios within the same round. Results were checked before a time counted."
    yield ""
    yield f"- Machine: {machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['kernel']};"
    yield f"  journal on {machine['file_system']}"
    yield f"- Versions: Python {machine['python']}, {versions}"
    yield "- A finished job survives nothing (`none`), a SIGKILL of anything (`process`), or a power cut (`disk`)"
    yield "- Peers (`--peers`) run in processes of their own that see no network but loopback. One that would"
    yield "  take longer than the cap is not run; the pace it is said to have was measured with jobs that do nothing."
    yield "  Redis appends to a file before it answers and flushes that once a second. Celery acknowledges late and"
    yield "  requeues what a lost worker had; all else is as it is by default"


def _summary(contests: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield "| number | work | goal | reached | |"
    yield "|---|---|---|---|---|"
    for number in _NUMBERS:
        found = [contest for contest in contests if contest["number"] == number]
        if not found:
            yield f"| {number} | - | - | - | **not measured** |"
        for contest in found:
            work = f"{contest['jobs']:,} {contest['title']}"
            for goal in contest["goals"]:
                told, reached, _, verdict = goal_cells(goal)
                yield f"| {number} | {work} | {told} | {reached} | {verdict} |"


def _measured(made: Mapping[str, Any], cores: int) -> Iterator[str]:
    load = " ".join(f"{part:.2f}" for part in made["load_before"])
    yield f"`{made['command']}`, {made['date']}: {made['rounds']} rounds, {made['workers']} workers."
    busy = " (the machine was not idle: read the ratios, not the rates)" if made["load_before"][0] > cores / 4 else ""
    yield f"Load average before (1, 5, 15 min): {load}{busy}."


def _contest(contest: Mapping[str, Any], cores: int) -> Iterator[str]:
    yield f"## {contest['number']}: {contest['jobs']:,} {contest['title']}"
    yield ""
    yield from _measured(contest["made"], cores)
    yield f"The clock covers: {contest['counted']}."
    if contest["notes"]:
        yield "The work: " + ", ".join(f"{name} {value:.3g}" for name, value in contest["notes"].items()) + "."
    yield ""
    yield "| contender | survives | seconds, median (min to max) | jobs/s | batchd is |"
    yield "|---|---|---|---|---|"
    subject: list[float] = next((each["seconds"] for each in contest["contenders"] if each["name"] == "batchd"), [])
    for each in contest["contenders"]:
        if reason := f"refused: {each['refused']}" if each["refused"] else each.get("absent"):
            yield f"| {each['name']} | {each['durability']} | {reason} | - | - |"
            continue
        if not each["seconds"]:
            continue
        times = each["seconds"]
        spread = f"{median(times):.3f} ({min(times):.3f} to {max(times):.3f})"
        rate = f"{each['jobs_per_s']:,.0f}"
        yield f"| {each['name']} | {each['durability']} | {spread} | {rate} | {_times(subject, each)} |"
    yield from _figures(contest)
    yield ""
    yield "| goal | reached | every round | |"
    yield "|---|---|---|---|"
    for goal in contest["goals"]:
        yield f"| {' | '.join(goal_cells(goal))} |"


def _times(subject: list[float], each: Mapping[str, Any]) -> str:
    if each["name"] == "batchd" or len(subject) != len(each["seconds"]):
        return ""
    return f"{median([other / own for own, other in zip(subject, each['seconds'], strict=True)]):.2f}x"


def goal_cells(goal: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """One line of the table of goals; a missed one says so."""
    if goal["reached"] is None:
        return goal["goal"], "-", "-", "**not measured**"
    reached = f"{goal['reached']:.3g}" + (f" ({goal['reference']})" if goal["reference"] else "")
    rounds = ", ".join(f"{part:.3g}" for part in goal["rounds"])
    return goal["goal"], reached, rounds, "met" if goal["is_met"] else "**missed**"


def _figures(contest: Mapping[str, Any]) -> Iterator[str]:
    names = list(dict.fromkeys(name for each in contest["contenders"] for row in each["figures"] for name in row))
    shown = [each for each in contest["contenders"] if any(each["figures"])]
    if not names or not shown:
        return
    yield ""
    yield "| measured in the same runs, medians | " + " | ".join(each["name"] for each in shown) + " |"
    yield "|---|" + "---|" * len(shown)
    for name in names:
        cells = [figure_text(name, [row[name] for row in each["figures"] if name in row]) for each in shown]
        yield f"| {name} | " + " | ".join(cells) + " |"


def figure_text(name: str, found: list[float]) -> str:
    """A figure as people read it.

    >>> figure_text("gaps between jobs", [0.011, 0.013, 0.012]), figure_text("commits", [])
    ('1.2 %', '')
    """
    if not found:
        return ""
    value = median(found)
    if any(word in name for word in _PERCENT) and "ns" not in name:
        return f"{100 * value:.1f} %"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _anatomy(anatomy: Mapping[str, Any], cores: int) -> Iterator[str]:
    yield f"## Where the time goes: N1, {anatomy['jobs']:,} integers"
    yield ""
    yield from _measured(anatomy["made"], cores)
    yield from anatomy["explained"]
    yield ""
    yield "| process | part | ns a job | of the end-to-end time |"
    yield "|---|---|---|---|"
    for part in anatomy["parts"]:
        share = 100 * part["ns"] / anatomy["end_to_end_ns"]
        name = part["part"] if part["is_sum"] else f"&nbsp;&nbsp;{part['part']}"
        yield f"| {part['process']} | {name} | {part['ns']:.0f} | {share:.0f} % |"


def _profile(profile: Mapping[str, Any], cores: int) -> Iterator[str]:
    yield f"## {profile['title']}"
    yield ""
    yield from _measured(profile["made"], cores)
    yield from profile["explained"]
    yield ""
    yield f"| {' | '.join(profile['columns'])} |"
    yield "|---" * len(profile["columns"]) + "|"
    for row in profile["rows"]:
        yield f"| {' | '.join(row)} |"
