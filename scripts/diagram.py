"""The state diagrams of ARCHITECTURE.md, drawn from the tables that decide: they cannot drift apart."""

import re
import sys
from pathlib import Path

from batchd.core.facts import BATCH_TRANSITIONS
from batchd.core.job import TRANSITIONS

_PAGE = Path(__file__).resolve().parents[1] / "ARCHITECTURE.md"


def diagrams() -> dict[str, str]:
    """Return the Mermaid text of each diagram by its name in the page."""
    jobs = [(start.name.lower(), trigger.value, stop.name.lower()) for (start, trigger), stop in TRANSITIONS.items()]
    batches = [(start.value, trigger, stop.value) for (start, trigger), stop in BATCH_TRANSITIONS.items()]
    return {"job": _mermaid("queued", jobs), "batch": _mermaid("open", batches)}


def _mermaid(first: str, arrows: list[tuple[str, str, str]]) -> str:
    lines = ["stateDiagram-v2", f"    [*] --> {first}"]
    lines += [f"    {start} --> {stop}: {trigger}" for start, trigger, stop in arrows]
    return "\n".join(lines)


def rewritten(page: str) -> str:
    """Return the page with its diagrams drawn anew."""
    for name, text in diagrams().items():
        pattern = re.compile(rf"(<!-- diagram: {name} -->\n```mermaid\n).*?(\n```)", re.DOTALL)
        page, found = pattern.subn(lambda match, text=text: match[1] + text + match[2], page)  # type: ignore[misc]
        if found != 1:
            raise SystemExit(f"ARCHITECTURE.md has {found} places for the diagram of a {name}; it needs one")
    return page


def main() -> int:
    """Write, or with --check compare; return the exit code."""
    page = _PAGE.read_text("utf-8")
    drawn = rewritten(page)
    if "--check" in sys.argv:
        return int(drawn != page)
    _PAGE.write_text(drawn, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
