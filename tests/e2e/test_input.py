"""What `batchd run` is given: kinds of input, input that grew or changed, and input that cannot be read."""

import gzip
import json

from tests.commands import Desk


def test_input_that_grew_at_its_end_goes_on(desk: Desk) -> None:
    source = desk.folder / "in.txt"
    source.write_text("a\nbb\n")
    command = ("run", desk.task("text_length"), str(source), "--arg", "times=10", "--out", "out.jsonl")
    assert desk.run(*command).returncode == 0
    source.write_text("a\nbb\nccc\n")
    assert desk.run(*command).returncode == 0
    assert desk.values() == [10, 20, 30]


def test_input_that_changed_is_refused(desk: Desk) -> None:
    source = desk.folder / "in.txt"
    source.write_text("a\nbb\n")
    desk.run("run", desk.task("text_length"), str(source))
    source.write_text("x\nbb\n")
    again = desk.run("run", desk.task("text_length"), str(source))
    assert again.returncode == 2
    assert "in.txt" in again.stderr
    assert "--new" in again.stderr
    assert "Traceback" not in again.stderr


def test_json_lines_nul_and_paths(desk: Desk) -> None:
    (desk.folder / "rows.jsonl").write_text('{"a": 1}\n{"a": [2]}\n')
    rows = desk.run("run", desk.task("first_field"), "rows.jsonl", "--out", "-")
    assert [json.loads(line)["result"] for line in rows.stdout.splitlines()] == [1, [2]]
    nul = desk.run("run", desk.task("text_length"), "-0", "-", "--out", "-", given="a\nb\0ccc")
    assert [json.loads(line)["result"] for line in nul.stdout.splitlines()] == [3, 3]
    for name in ("b.dat", "a.dat"):
        (desk.folder / name).write_text("")
    paths = desk.run("run", desk.task("text_length"), "--paths", "**/*.dat", "--out", "-")
    assert len(paths.stdout.splitlines()) == 2


def test_malformed_json_names_file_and_line_and_loses_nothing(desk: Desk) -> None:
    (desk.folder / "rows.jsonl").write_text('{"a": 1}\n{"a": \n{"a": 3}\n')
    command = ("run", desk.task("first_field"), "rows.jsonl", "--out", "out.jsonl")
    bad = desk.run(*command)
    assert bad.returncode == 2
    assert "rows.jsonl" in bad.stderr
    assert "2" in bad.stderr
    assert "--skip-bad-input" in bad.stderr
    skipped = desk.run(*command, "--skip-bad-input")
    assert skipped.returncode == 0
    assert "1 piece of the input could not be read" in skipped.stderr
    assert f"(--skip-bad-input): {desk.folder}/rows.jsonl:2\n" in skipped.stderr
    assert desk.values() == [1, 3]


def test_an_input_that_cannot_be_read_at_all_makes_no_batch(desk: Desk) -> None:
    (desk.folder / "rows.jsonl").write_text("{\n{\n")
    for more, words in (((), "rows.jsonl:1 is not valid JSON"), (("--skip-bad-input",), "Nothing of the input")):
        ran = desk.run("run", desk.task("first_field"), "rows.jsonl", *more)
        assert ran.returncode == 2, ran.stderr
        assert words in ran.stderr
        assert "can be continued" not in ran.stderr
    assert json.loads(desk.run("ls", "--json").stdout)["batches"] == []


def test_an_empty_input_is_a_finished_batch_of_no_jobs(desk: Desk) -> None:
    (desk.folder / "none.txt").write_text("")
    ran = desk.run("run", desk.task("text_length"), "none.txt", "--out", "out.jsonl")
    assert ran.returncode == 0, ran.stderr
    assert desk.results() == []


def test_a_missing_input_and_a_binary_one_get_a_sentence(desk: Desk) -> None:
    missing = desk.run("run", desk.task("text_length"), "no.txt")
    (desk.folder / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\xff\xfe")
    binary = desk.run("run", desk.task("text_length"), "picture.png")
    for ran, name in ((missing, "no.txt"), (binary, "picture.png")):
        assert ran.returncode == 2
        assert name in ran.stderr
        assert "Traceback" not in ran.stderr


def test_rows_of_a_compressed_table_go_to_tasks_and_commands(desk: Desk) -> None:
    with gzip.open(desk.folder / "rows.csv.gz", "wt") as file:
        file.write('a,b\n1,"x\ny"\n2,z\n')
    command = ("run", desk.task("first_field"), "rows.csv.gz", "--out", "out.jsonl")
    assert desk.run(*command).returncode == 0
    assert desk.values() == ["1", "2"]
    assert "finished already" in desk.run(*command).stderr
    assert "rows.csv.gz" in desk.run("show").stdout
    ran = desk.run("exec", "printf %s-%s {a} {b}", "rows.csv.gz", "--out", "-")
    assert [json.loads(line)["result"] for line in ran.stdout.splitlines()] == ["1-x\ny", "2-z"]
