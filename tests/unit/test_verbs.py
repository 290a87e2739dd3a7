"""What `batchd --help` shows is what can be said."""

import pytest

from batchd.cli.arguments import parser
from batchd.cli.main import main
from batchd.cli.verbs import VERBS


def test_every_verb_is_shown_and_understood(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    told = capsys.readouterr().out
    assert [line.split()[0] for line in told.splitlines() if line.startswith("  ")] == list(VERBS)
    for verb in VERBS:
        with pytest.raises(SystemExit, match="0"):
            parser().parse_args([verb, "--help"])
        assert capsys.readouterr().out.startswith(f"usage: batchd {verb}")


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("batchd 0.")
