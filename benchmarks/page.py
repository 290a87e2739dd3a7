"""What is kept of a run: a JSON file with every round, and the page people read, made from the same fields.

The page is a pure function of what the JSON file holds, so it can be written again from it.
"""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from textwrap import wrap
from typing import Any

from benchmarks import plots
from benchmarks.figures import ratios
from benchmarks.machine import name_of
from benchmarks.peers.roster import ROSTER, Entry

_NUMBERS = tuple(f"N{number}" for number in range(1, 13))
_COLUMNS_MAX = 6
_WHOLE = 10
_CONDITIONS = (
    "So many times as many jobs a second batchd does, whose results survive a power cut; where a peer has several "
    "ways, beside its fastest. Peers run in processes of their own, with as many workers, and see no network but "
    "loopback. Each is started and warmed up for every round, and ended after it, outside the clock. They compete in "
    "turn with all others, in the first rounds; the tables below say in how many, and how long each took. In N1, N2, "
    "N3 and N8 each gets as many of the jobs as fit a budget of time (the tables say how many), and rates are "
    "compared. In N4, N11 and N12 each gets all of them, and has no time when it loses any or would need longer than "
    "a cap, which stands in its place, as its pace tells beforehand or waiting does. Redis appends to a file before "
    "it answers and flushes that once a second. Celery acknowledges late and requeues what a lost worker had; all "
    "else is as it is by default."
)
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
    if len(table := peers(run)) > 1:
        lines += ["", "## Beside others", "", *wrap(_CONDITIONS, 118), "", *_ruled(table)]
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


def peers(run: Mapping[str, Any]) -> list[list[str]]:
    """The table of peers: how many times as fast batchd is in each number, or how it ended for them."""
    of = {
        (peer, at): [each for each in contest["contenders"] if each.get("peer") == peer]
        for at, contest in enumerate(run["contests"])
        for peer in ROSTER
    }
    shown = [at for at in range(len(run["contests"])) if any(of[peer, at] for peer in ROSTER)]
    titles = [f"{run['contests'][at]['number']}: {run['contests'][at]['title']}" for at in shown]
    rows = [["peer", "version", "survives", *titles]]
    for peer, entry in ROSTER.items():
        if any(of[peer, at] for at in shown):
            cells = [_beside(run["contests"][at], of[peer, at]) for at in shown]
            rows.append([peer, _version(entry, run["machine"]), entry.durability, *cells])
    return rows


def _version(entry: Entry, machine: Mapping[str, Any]) -> str:
    names = [name for name in (entry.package, entry.program) if name] or ["Python"]
    known = {"Python": machine["python"], **machine["versions"]}
    return ", ".join(f"{name} {known[name]}" for name in names) if known.keys() >= set(names) else "-"


def _beside(contest: Mapping[str, Any], ways: Sequence[Mapping[str, Any]]) -> str:
    """One cell: batchd beside the fastest of a peer's ways, or the gist of why there is no time."""
    factors = [median(found) for each in ways if (found := ahead(contest, each))]
    if factors:
        factor = min(factors)
        return f"{factor:,.0f}x" if factor >= _WHOLE else f"{factor:.2g}x"
    return next((reason.partition(":")[0] for each in ways if (reason := _reason(each))), "-")


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
    yield from _ruled(times(contest))
    for rows in (figures(contest), goals(contest)):
        if len(rows) > 1:
            yield ""
            yield from _ruled(rows)


def _ruled(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A table whose first row names the columns."""
    yield f"| {' | '.join(rows[0])} |"
    yield "|---" * len(rows[0]) + "|"
    for row in rows[1:]:
        yield f"| {' | '.join(row)} |"


def times(contest: Mapping[str, Any]) -> list[list[str]]:
    """The table of those who competed: how long each took, or why it has no time."""
    rows = [["contender", "survives", "seconds, median (min to max)", "jobs/s", "batchd is"]]
    rounds = max((len(each["seconds"]) for each in contest["contenders"]), default=0)
    for each in contest["contenders"]:
        if reason := _reason(each):
            rows.append([each["name"], each["durability"], reason, "-", "-"])
        elif took_s := each["seconds"]:
            spread = f"{median(took_s):.3f} ({min(took_s):.3f} to {max(took_s):.3f})"
            factors = ahead(contest, each)
            factor = f"{median(factors):.2f}x" if factors else ""
            rows.append(
                [_told(contest, each, rounds), each["durability"], spread, f"{each['jobs_per_s']:,.0f}", factor]
            )
    return rows


def _reason(each: Mapping[str, Any]) -> str:
    """Why a contender has no time; nothing for one that has."""
    return f"refused: {each['refused']}" if each["refused"] else each.get("absent") or ""


def _told(contest: Mapping[str, Any], each: Mapping[str, Any], rounds: int) -> str:
    """A contender's name, and what it did less than the others."""
    less = []
    if each.get("peer") and each["jobs"] != contest["jobs"]:
        less.append(f"{each['jobs']:,} jobs")
    if len(each["seconds"]) < rounds:
        less.append("1 round" if len(each["seconds"]) == 1 else f"{len(each['seconds'])} rounds")
    return f"{each['name']} ({', '.join(less)})" if less else str(each["name"])


def ahead(contest: Mapping[str, Any], each: Mapping[str, Any]) -> list[float]:
    """How many times as many jobs a second batchd did, in each round that the other took part in."""
    subject = next((other for other in contest["contenders"] if other["name"] == "batchd"), each)
    if subject is each or len(subject["seconds"]) < len(each["seconds"]):
        return []
    share = (subject.get("jobs") or contest["jobs"]) / (each.get("jobs") or contest["jobs"])
    own_s = subject["seconds"][: len(each["seconds"])]
    return [share * ratio for ratio in ratios(own_s, each["seconds"])]


def goals(contest: Mapping[str, Any]) -> list[list[str]]:
    """The table of goals."""
    return [["goal", "reached", "every round", ""], *(list(goal_cells(goal)) for goal in contest["goals"])]


def goal_cells(goal: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """One line of the table of goals; a missed one says so."""
    if goal["reached"] is None:
        return goal["goal"], "-", "-", "**not measured**"
    reached = f"{goal['reached']:.3g}" + (f" ({goal['reference']})" if goal["reference"] else "")
    rounds = ", ".join(f"{part:.3g}" for part in goal["rounds"])
    return goal["goal"], reached, rounds, "met" if goal["is_met"] else "**missed**"


def figures(contest: Mapping[str, Any]) -> list[list[str]]:
    """The table of what else was measured: a column for each contender, a row where these are many."""
    names = list(dict.fromkeys(name for each in contest["contenders"] for row in each["figures"] for name in row))
    shown = [each for each in contest["contenders"] if any(each["figures"])]
    rows = [["measured in the same runs, medians", *(each["name"] for each in shown)]]
    for name in names:
        found = [[row[name] for row in each["figures"] if name in row] for each in shown]
        rows.append([name, *(figure_text(name, values) for values in found)])
    return rows if len(shown) <= _COLUMNS_MAX else [list(row) for row in zip(*rows, strict=True)]


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
    rows = [["process", "part", "ns a job", "of the end-to-end time"]]
    for part in anatomy["parts"]:
        share = 100 * part["ns"] / anatomy["end_to_end_ns"]
        name = part["part"] if part["is_sum"] else f"&nbsp;&nbsp;{part['part']}"
        rows.append([part["process"], name, f"{part['ns']:.0f}", f"{share:.0f} %"])
    yield from _ruled(rows)


def _profile(profile: Mapping[str, Any], cores: int) -> Iterator[str]:
    yield f"## {profile['title']}"
    yield ""
    yield from _measured(profile["made"], cores)
    yield from profile["explained"]
    yield ""
    yield from _ruled([profile["columns"], *profile["rows"]])
