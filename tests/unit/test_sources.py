"""Sources: what becomes an item, how blocks are cut, and what is refused with which words."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from batchd import settings
from batchd.errors import InputChanged, InputError, UsageError
from batchd.sources import Block, Checkpoint, PathSource, RangeSource, Source, TextSource, open_source


def items_of(source: Source, start: Checkpoint | None = None) -> list[Any]:
    return [item for block in source.blocks(start) for item in block.items]


def last_checkpoint(source: Source) -> Checkpoint:
    *_, block = source.blocks()
    return block.checkpoint


def written(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return str(path)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- text: what is an item ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "items"),
    [
        (b"", []),
        (b"\n", [""]),
        (b"a\nb\n", ["a", "b"]),
        (b"a\nb", ["a", "b"]),
        (b"a\r\nb\r\r\nc\r", ["a", "b\r", "c"]),
        (b"a\n\n b \n", ["a", "", " b "]),
        ("å\x85\u2028\x0b\n".encode(), ["å\x85\u2028\x0b"]),
        (b"\xef\xbb\xbfa\n\xef\xbb\xbfb\n", ["a", "\ufeffb"]),
    ],
)
def test_each_line_is_an_item(folder: Path, data: bytes, items: list[str]) -> None:
    assert items_of(open_source([written(folder / "a.txt", data)])) == items


def test_nul_parts_strings_that_hold_newlines(folder: Path) -> None:
    name = written(folder / "names", b"a\nb\0\0c\r")
    assert items_of(open_source([name], null=True)) == ["a\nb", "", "c\r"]


@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".JSONL"])
def test_json_lines_are_values(folder: Path, suffix: str) -> None:
    name = written(folder / f"a{suffix}", b'{"x": [1, null]}\r\n\n  \n"two"\n3.5')
    assert items_of(open_source([name])) == [{"x": [1, None]}, "two", 3.5]


def test_files_are_read_one_after_another_each_by_its_kind(folder: Path) -> None:
    first = written(folder / "a.jsonl", b"1\n2")
    second = written(folder / "b.txt", b"3\n")
    assert items_of(open_source([first, second, first])) == [1, 2, "3", 1, 2]


def test_a_line_longer_than_many_chunks_is_one_item(folder: Path) -> None:
    line = "x" * 10_000
    name = written(folder / "a.txt", f"a\n{line}\nb".encode())
    assert items_of(TextSource([name], chunk_bytes=7)) == ["a", line, "b"]


def test_a_line_beyond_the_limit_is_refused_after_the_lines_before_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "VALUE_BYTES_MAX", 100)
    name = written(folder / "a.txt", b"a\n" + b"x" * 200 + b"\nb\n")
    blocks = TextSource([name], chunk_bytes=10).blocks()
    assert next(blocks).items == ["a"]
    with pytest.raises(InputError, match=r"a\.txt:2 is longer than 100 bytes"):
        next(blocks)


# --- text: blocks ------------------------------------------------------------------------------------------------


def test_the_first_blocks_are_small(folder: Path) -> None:
    name = written(folder / "a.txt", b"line\n" * 10_000)
    assert [len(block.items) for block in open_source([name]).blocks()] == [64, 512, 4096, 4096, 1232]


def test_a_block_holds_at_most_a_mebibyte_unless_one_item_is_longer(folder: Path) -> None:
    third, huge = b"x" * 400_000 + b"\n", b"y" * 3_000_000 + b"\n"
    name = written(folder / "a.txt", third * 3 + huge + third * 2)
    sizes = [[len(item) for item in block.items] for block in open_source([name]).blocks()]
    assert sizes == [[400_000, 400_000], [400_000], [3_000_000], [400_000, 400_000]]


def test_a_block_may_span_files(folder: Path) -> None:
    names = [written(folder / f"{at}.txt", b"x\n") for at in range(5)]
    assert [len(block.items) for block in TextSource(names, block_items=(2,)).blocks()] == [2, 2, 1]


def test_a_checkpoint_stands_at_the_end_of_its_last_item(folder: Path) -> None:
    source = TextSource([written(folder / "a.jsonl", b"1\n\n2\n\n\n3\n\n")], block_items=(1, 2))
    assert [(b.items, b.checkpoint.items, b.checkpoint.offset) for b in source.blocks()] == [
        ([1], 1, 2),
        ([2, 3], 3, 9),
    ]


def test_a_pipe_gives_what_it_has_without_waiting_for_more() -> None:
    reader, writer = os.pipe()
    blocks = TextSource(["-"], stdin_fd=reader).blocks()
    os.write(writer, b"a\nb\nhal")
    assert next(blocks).items == ["a", "b"]
    os.write(writer, b"f\n")
    assert next(blocks).items == ["half"]
    os.close(writer)
    assert list(blocks) == []
    os.close(reader)


# --- text: what is refused ---------------------------------------------------------------------------------------


def test_what_stands_before_malformed_json_is_given_first(folder: Path) -> None:
    source = open_source([written(folder / "a.jsonl", b'1\n\n2\n{"x": }\n3\n')])
    blocks = source.blocks()
    assert next(blocks) == Block([1, 2], last_checkpoint(open_source([written(folder / "b.jsonl", b"1\n\n2\n")])))
    with pytest.raises(InputError, match=r"a\.jsonl:4 is not valid JSON: Expecting value at column 7.*--skip-bad"):
        next(blocks)


def test_bad_lines_are_left_out_and_counted_when_asked(folder: Path) -> None:
    names = [written(folder / "a.jsonl", b"1\n}\n2\n{"), written(folder / "b.txt", b"a\n\xff\nb\0\nc\n")]
    source = open_source(names, skip_bad_input=True)
    assert items_of(source) == [1, 2, "a", "c"]
    assert source.skipped == 4
    assert source.skipped_places == [
        f"{folder}/{place}" for place in ("a.jsonl:2", "a.jsonl:4", "b.txt:2", "b.txt:3")
    ]


def test_every_item_of_text_knows_its_line(folder: Path) -> None:
    names = [written(folder / "a.jsonl", b"1\n\n2\n3\n}\n4\n"), written(folder / "b.txt", b"a\nb\n")]
    found = [
        (item, Path(block.place_of(at)).name)
        for block in open_source(names, skip_bad_input=True).blocks()
        for at, item in enumerate(block.items)
    ]
    lines = ["a.jsonl:1", "a.jsonl:3", "a.jsonl:4", "a.jsonl:6", "b.txt:1", "b.txt:2"]
    assert found == list(zip([1, 2, 3, 4, "a", "b"], lines, strict=True))


def test_input_that_is_bad_throughout_is_an_error(folder: Path) -> None:
    source = open_source([written(folder / "a.jsonl", b"}\n{\n\n")], skip_bad_input=True)
    with pytest.raises(InputError, match=r"--skip-bad-input left all of it out, 2 in number, .*a\.jsonl:1 first"):
        items_of(source)
    assert items_of(open_source([written(folder / "b.jsonl", b"\n\n")], skip_bad_input=True)) == []


def test_json_nested_beyond_reason_is_a_bad_line(folder: Path) -> None:
    name = written(folder / "a.jsonl", b"[" * 200_000 + b"\n1\n")
    source = open_source([name], skip_bad_input=True)
    assert (items_of(source), source.skipped) == ([1], 1)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"a\nb\nc\xff\n", r"a\.txt:3 is not UTF-8 text, from byte 2 of the line on"),
        (b"a\nbc\0\n", r"a\.txt:2 is not text: byte 3 of the line is NUL\. .*--null.*--paths"),
    ],
)
def test_what_is_not_text_is_named_by_line_and_byte(folder: Path, data: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        items_of(open_source([written(folder / "a.txt", data)]))


def test_what_a_compressed_file_needs_is_said(folder: Path) -> None:
    with pytest.raises(InputError, match=r"Unpack it on the way: bzcat .*a\.txt\.bz2 \| batchd run TASK -\."):
        items_of(open_source([written(folder / "a.txt.bz2", b"BZh\xff\n")]))
    with pytest.raises(InputError, match=r"Read it in Python, and give its rows to batchd\.map"):
        items_of(open_source([written(folder / "a.parquet", b"\xff\n")]))


def test_names_of_files_may_be_any_bytes(folder: Path) -> None:
    name = written(folder / "a.txt", b"a\0\xff\xfe.log\0")
    assert items_of(open_source([name], null=True)) == ["a", "\udcff\udcfe.log"]


def test_line_numbers_count_within_each_file_also_behind_a_checkpoint(folder: Path) -> None:
    names = [written(folder / "a.jsonl", b"1\n2\n"), written(folder / "b.jsonl", b"3\n4\n5\n")]
    start = [block.checkpoint for block in TextSource(names, block_items=(1,)).blocks()][3]
    written(folder / "b.jsonl", b"3\n4\n5\n}\n")
    with pytest.raises(InputError, match=r"b\.jsonl:4 is not"):
        items_of(open_source(names), start)


def test_what_cannot_be_opened_is_refused_before_reading(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"gone\.txt does not exist\. Check the name; relative names start at /"):
        open_source(["gone.txt"])
    with pytest.raises(InputError, match=rf"{folder} is a folder\. .*--paths"):
        open_source([str(folder)])
    name = written(folder / "a.txt", b"")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(InputError, match=r"a\.txt may not be read"):
        open_source([name])


def test_a_file_that_vanishes_is_reported_behind_the_items_before_it(folder: Path) -> None:
    names = [written(folder / "a.txt", b"1\n"), written(folder / "b.txt", b"2\n")]
    blocks = open_source(names).blocks()
    (folder / "b.txt").unlink()
    assert next(blocks).items == ["1"]
    with pytest.raises(InputError, match=r"b\.txt does not exist"):
        next(blocks)


def test_a_folder_as_standard_input_is_refused(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    with pytest.raises(InputError, match="standard input is a folder"):
        items_of(TextSource(["-"], stdin_fd=descriptor))
    os.close(descriptor)


def test_standard_input_that_is_closed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python says so; its number may be that of any other file."""
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(InputError, match="standard input is closed"):
        items_of(TextSource(["-"]))


# --- text: going on ----------------------------------------------------------------------------------------------


def test_appended_lines_are_the_rest(folder: Path) -> None:
    name = written(folder / "a.txt", b"1\n2\n")
    start = last_checkpoint(open_source([name]))
    written(folder / "a.txt", b"1\n2\n3\n")
    assert [(b.items, b.checkpoint.items) for b in open_source([name]).blocks(start)] == [(["3"], 3)]


@pytest.mark.parametrize("data", [b"1\n9\n", b"1\n2", b"", b"1\n"])
def test_a_changed_or_shorter_prefix_is_refused(folder: Path, data: bytes) -> None:
    name = written(folder / "a.txt", b"1\n2\n")
    start = last_checkpoint(open_source([name]))
    written(folder / "a.txt", data)
    with pytest.raises(InputChanged, match=r"a\.txt (changed within|ends after) .*--new"):
        items_of(open_source([name]), start)


@pytest.mark.parametrize(
    ("grown", "rest"),
    [(b"1\n2", []), (b"1\n2\n", []), (b"1\n2\n3\n", ["3"]), (b"1\n2\r\n3", ["3"]), (b"1\n2\r", [])],
)
def test_an_unfinished_last_line_may_be_ended(folder: Path, grown: bytes, rest: list[str]) -> None:
    name = written(folder / "a.txt", b"1\n2")
    start = last_checkpoint(open_source([name]))
    written(folder / "a.txt", grown)
    assert items_of(open_source([name]), start) == rest


@pytest.mark.parametrize(("name", "before"), [("a.txt", b"1\n2"), ("a.csv", b"n\n1")])
def test_behind_a_line_that_was_ended_since_all_is_as_in_one_pass(folder: Path, name: str, before: bytes) -> None:
    start = last_checkpoint(open_source([written(folder / name, before)]))
    source = open_source([written(folder / name, before + b"\r\n3\n")])
    (block,) = source.blocks(start)
    assert (block.items, block.checkpoint) == (next(source.blocks()).items[-1:], last_checkpoint(source))
    assert block.place_of(0) == f"{folder}/{name}:3"


@pytest.mark.parametrize("grown", [b"1\n23\n", b"1\n23", b"1\n2\r3\n", b"1\n2 \n"])
def test_an_unfinished_last_line_that_grew_is_refused(folder: Path, grown: bytes) -> None:
    name = written(folder / "a.txt", b"1\n2")
    start = last_checkpoint(open_source([name]))
    written(folder / "a.txt", grown)
    with pytest.raises(InputChanged, match=r"a\.txt:2 was the unfinished last line .*--new"):
        items_of(open_source([name]), start)


def test_a_carriage_return_already_read_is_not_dropped_twice(folder: Path) -> None:
    name = written(folder / "a.txt", b"1\r")
    start = last_checkpoint(open_source([name]))
    written(folder / "a.txt", b"1\r\r\n2\n")
    with pytest.raises(InputChanged):
        items_of(open_source([name]), start)


def test_growth_of_a_file_before_the_last_is_a_change(folder: Path) -> None:
    names = [written(folder / "a.txt", b"1\n"), written(folder / "b.txt", b"2\n")]
    start = last_checkpoint(open_source(names))
    written(folder / "a.txt", b"1\n1\n")
    with pytest.raises(InputChanged, match=r"The input .*a\.txt \.\. .*b\.txt changed within its first 4 bytes"):
        items_of(open_source(names), start)


def test_lines_joined_across_files_are_a_change_though_the_bytes_are_the_same(folder: Path) -> None:
    names = [written(folder / "a.txt", b"1"), written(folder / "b.txt", b"2\n")]
    start = last_checkpoint(open_source(names))
    written(folder / "a.txt", b"12\n")
    written(folder / "b.txt", b"")
    with pytest.raises(InputChanged):
        items_of(open_source(names), start)


def test_a_bad_line_can_be_left_out_on_the_second_try(folder: Path) -> None:
    name = written(folder / "a.jsonl", b"1\n}\n2\n")
    blocks = open_source([name]).blocks()
    start = next(blocks).checkpoint
    with pytest.raises(InputError):
        next(blocks)
    assert items_of(open_source([name], skip_bad_input=True), start) == [2]
    start = last_checkpoint(open_source([name], skip_bad_input=True))
    written(folder / "a.jsonl", b"1\n}\n2\n3\n")
    assert items_of(open_source([name]), start) == [3]


def test_standard_input_goes_on_behind_the_same_bytes(folder: Path) -> None:
    def stdin(data: bytes) -> TextSource:
        return TextSource(["-"], stdin_fd=os.open(written(folder / "in", data), os.O_RDONLY))

    start = last_checkpoint(stdin(b"1\n2\n"))
    assert items_of(stdin(b"1\n2\n3\n"), start) == ["3"]
    with pytest.raises(InputChanged, match=r"standard input ends after 2 bytes, .* already read 4"):
        items_of(stdin(b"1\n"), start)


def test_a_checkpoint_of_nothing_starts_at_the_beginning(folder: Path) -> None:
    name = written(folder / "a.txt", b"1\n")
    assert items_of(open_source([name]), Checkpoint(0, 0, "")) == ["1"]


def test_every_descriptor_is_closed_when_reading_is_given_up(folder: Path) -> None:
    def opened() -> bool:
        return any(
            link.is_symlink() and str(folder) in str(link.readlink()) for link in Path("/proc/self/fd").iterdir()
        )

    blocks = TextSource([written(folder / "a.txt", b"1\n2\n")], block_items=(1,)).blocks()
    next(blocks)
    assert opened()
    del blocks
    assert not opened()


# --- paths -------------------------------------------------------------------------------------------------------


@pytest.fixture
def tree(folder: Path) -> Path:
    for name in ("b.png", "a.png", "deep/er/c.png", "deep/d.txt", "e[1].png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    (folder / "f.png").mkdir()
    return folder


def test_paths_are_absolute_files_sorted_in_each_pattern_and_given_once(tree: Path) -> None:
    source = open_source([], paths=["deep/**", "**/*.png"])
    names = ["deep/d.txt", "deep/er/c.png", "a.png", "b.png", "e[1].png"]
    assert items_of(source) == [str(tree / name) for name in names]
    assert source.count() == 5


def test_a_name_that_exists_is_meant_literally(tree: Path) -> None:
    assert items_of(open_source([], paths=["e[1].png"])) == [str(tree / "e[1].png")]


@pytest.mark.usefixtures("tree")
def test_a_pattern_without_files_is_refused() -> None:
    with pytest.raises(InputError, match=r"\*\.jpg matches no file\."):
        open_source([], paths=["*.png", "*.jpg"])
    with pytest.raises(InputError, match=r"deep matches folders but no file\. .*deep/\*\*"):
        open_source([], paths=["deep"])


def test_paths_go_on_only_behind_the_same_names(tree: Path) -> None:
    pattern = ["*.png"]
    start = last_checkpoint(PathSource(pattern))
    (tree / "z.png").touch()
    assert items_of(PathSource(pattern), start) == [str(tree / "z.png")]
    assert next(PathSource(pattern).blocks(start)).checkpoint == last_checkpoint(PathSource(pattern))
    (tree / "c.png").touch()
    with pytest.raises(InputChanged, match=r"no longer begins with the same 3 files .*--new"):
        items_of(PathSource(pattern), start)
    (tree / "a.png").unlink()
    (tree / "b.png").unlink()
    (tree / "z.png").unlink()
    with pytest.raises(InputChanged, match=r"matches 2 files, but this batch has already read 3\."):
        items_of(PathSource(pattern), start)


# --- ranges ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["0:0", "5:2", "0:10", "-3:4:2", "10:-10:-3", "0:5000", f"{10**30}:{10**30 + 3}"])
def test_a_range_counts_as_python_does(text: str) -> None:
    expected = list(range(*map(int, text.split(":"))))
    source = open_source([], range_spec=text)
    assert (items_of(source), source.count()) == (expected, len(expected))


def test_a_range_longer_than_a_machine_word_is_lazy() -> None:
    source = RangeSource.parse(f"0:{10**20}")
    assert (source.count(), next(source.blocks()).items[-1]) == (10**20, 63)


@pytest.mark.parametrize("text", ["", "5", "a:b", "1:2:0", "1:2:3:4", "1.5:2"])
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a range: write A:B"):
        open_source([], range_spec=text)


def test_a_range_may_grow_but_not_shrink_shift_or_change_step() -> None:
    start = last_checkpoint(RangeSource.parse("0:3"))
    assert items_of(RangeSource.parse("0:5"), start) == [3, 4]
    assert RangeSource.parse("0:5").spec == RangeSource.parse("0:3").spec
    for text in ("0:2", "1:5", "0:9:2"):
        with pytest.raises(InputChanged, match="--new"):
            items_of(RangeSource.parse(text), start)


# --- choosing ----------------------------------------------------------------------------------------------------


def test_the_identity_is_kind_and_absolute_names(folder: Path) -> None:
    name = written(folder / "a.txt", b"")
    assert open_source(["a.txt"]).spec == {"kind": "text", "files": [name]} == open_source([name]).spec
    assert open_source(["a.txt"], null=True).spec == {"kind": "text", "files": [name], "null": True}
    assert open_source(["-"]).spec == {"kind": "stdin"}
    assert open_source([], paths=["*.txt"]).spec == {"kind": "paths", "patterns": [str(folder / "*.txt")]}
    assert open_source([], range_spec="1:9:2").spec == {"kind": "range", "start": 1, "step": 2}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"inputs": []}, "No input was given"),
        ({"inputs": ["a.txt"], "paths": ["*"]}, "not files and --paths: choose one. Quote the pattern"),
        ({"inputs": ["a.txt"], "range_spec": "0:1"}, "not files and --range: choose one.$"),
        ({"inputs": [], "paths": ["*"], "range_spec": "0:1"}, "not --paths and --range"),
        ({"inputs": [], "range_spec": "0:1", "null": True}, "leave --null out"),
        ({"inputs": ["a.jsonl"], "null": True}, "holds JSON lines, which --null cannot split"),
        ({"inputs": ["-", "-"]}, "named twice"),
    ],
)
def test_what_cannot_be_meant_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_source(**arguments)


def test_a_checkpoint_survives_json(folder: Path) -> None:
    checkpoint = last_checkpoint(open_source([written(folder / "a.txt", b"1\n")]))
    assert Checkpoint.from_json(json.loads(json.dumps(checkpoint.to_json()))) == checkpoint
