"""Programs of a user, run as users run them: a script in a folder of its own, whose temporary files lie there too."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
HEAD = """
import itertools, os, signal, sys
from pathlib import Path

import batchd
from tests.contract.calls import nap, note, notes

"""


class Programs:
    """A folder for scripts: `journal` lies in it, and what jobs left word of in `ran`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.journal = folder / "journal"
        self.ran = folder / "ran"
        self.tmp = folder / "tmp"
        self.tmp.mkdir()
        self._started: list[subprocess.Popen[str]] = []
        self.environ = {
            "PYTHONPATH": str(ROOT),
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "TMPDIR": str(self.tmp),
            "BATCHD_JOURNAL": str(self.journal),
        }

    def start(self, text: str, *arguments: Any) -> "subprocess.Popen[str]":
        """Start a program, in a process group of its own."""
        script = self.folder / "program.py"
        if not script.exists() or script.read_text() != HEAD + text:  # Another process may be about to read it.
            script.write_text(HEAD + text)
        process = subprocess.Popen(
            [sys.executable, "-W", "default", "program.py", *map(str, arguments)],
            env=self.environ,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._started.append(process)
        return process

    def close(self) -> None:
        """End what was started and is still there."""
        for process in self._started:
            with process:
                process.kill()

    def run(self, text: str, *arguments: Any) -> "subprocess.CompletedProcess[str]":
        """Run a program to its end."""
        process = self.start(text, *arguments)
        try:
            out, err = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            raise AssertionError(f"it does not end: {process.communicate()}") from None
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def told(self, text: str, *arguments: Any) -> str:
        """Run a program that is to end well, and return what it printed."""
        ended = self.run(text, *arguments)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    def left_behind(self) -> list[Path]:
        """Return what lies in its temporary folder."""
        return sorted(self.tmp.iterdir())
