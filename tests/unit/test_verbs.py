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


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--memory-per-job", "5M"), "--memory-per-job must be 16M or more: a worker takes most of that by itself"),
        (("--retries", "-1"), "--retries must be 0 or more"),
    ],
)
def test_what_no_job_could_keep_is_refused(
    capsys: pytest.CaptureFixture[str], options: tuple[str, ...], words: str
) -> None:
    assert main(["run", "builtins:abs", "--range", "0:3", *options]) == 2
    assert words in capsys.readouterr().err


def test_a_task_without_a_function_is_told_before_the_input_that_it_lacks(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["run", "etl.py"]) == 2
    assert "etl.py" in capsys.readouterr().err


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("batchd 0.")
