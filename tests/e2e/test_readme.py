"""Every Python program of the README runs as it stands, in an empty folder with a journal of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import until

README = Path(__file__).resolve().parents[2] / "README.md"
PROGRAMS = re.findall(r"^```python\n(.*?)^```", README.read_text("utf-8"), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("program", PROGRAMS, ids=[f"program {number}" for number in range(1, len(PROGRAMS) + 1)])
def test_the_program_runs(program: str, tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(program, "utf-8")
    ran = subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        cwd=tmp_path,
        env={**os.environ, "BATCHD_JOURNAL": str(tmp_path / "journal"), "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    until(lambda: not list(tmp_path.glob("batchd-*")), "the throw-away journal is gone")


def test_there_is_a_program_for_each_face() -> None:
    text = "\n".join(PROGRAMS)
    for face in ("batchd.map(", "batchd.Executor(", "batchd.Client(", "batchd.joblib.register(", "current_job("):
        assert face in text
