"""Tables and compressed files as input: rows by the names of their columns, whatever stands in the fields."""

import csv
import gzip
import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchd.errors import InputChanged, InputError, UsageError
from batchd.sources import Checkpoint, TableSource, open_source
from batchd.sources.files import has_suffix
from tests.property.test_text_source import files_of
from tests.unit.test_sources import items_of

FIELD = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=5) | st.text(
    '",\n\r;', max_size=4
)


def table(rows: list[list[str]], columns: list[str], end: str = "\r\n") -> bytes:
    """Return a table as Python's own writer makes it."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator=end, quoting=csv.QUOTE_ALL).writerows([columns, *rows])
    return text.getvalue().encode()


def source_of(folder: Path, content: bytes, name: str = "t.csv", **options: Any) -> TableSource:
    (folder / name).write_bytes(content)
    return TableSource([str(folder / name)], **options)


@given(
    st.lists(st.lists(st.tuples(FIELD, FIELD), max_size=6), min_size=1, max_size=3),
    st.sampled_from(["\r\n", "\n"]),
    st.booleans(),
    st.lists(st.integers(1, 3), min_size=1, max_size=2),
)
def test_rows_are_what_python_reads_and_every_checkpoint_gives_the_rest(
    tables: list[list[tuple[str, str]]], end: str, is_packed: bool, block_items: list[int]
) -> None:
    contents = [table([list(row) for row in rows], ["a", "b c"], end) for rows in tables]
    rows = [{"a": row[0], "b c": row[1]} for each in tables for row in each]
    packed = [gzip.compress(content) for content in contents] if is_packed else contents
    with files_of(packed, ".csv.gz" if is_packed else ".csv") as names:
        source = TableSource(names, block_items=block_items)
        given_items = 0
        for block in source.blocks():
            given_items += len(block.items)
            assert block.checkpoint.items == given_items
            assert items_of(source, block.checkpoint) == rows[given_items:]
        assert items_of(source) == rows


@pytest.mark.parametrize(
    ("content", "name", "rows"),
    [
        (b"a,b\n1,2\n", "t.csv", [{"a": "1", "b": "2"}]),
        (b"a;b\n1,5;2\n", "t.csv", [{"a": "1,5", "b": "2"}]),
        (b"a\tb\n1,5\t2\n", "t.TSV", [{"a": "1,5", "b": "2"}]),
        (b"\xef\xbb\xbfa,b\n1,2", "t.csv", [{"a": "1", "b": "2"}]),
        (b',a\n0,"x\n\ny"\n\n1,z\n', "t.csv", [{"": "0", "a": "x\n\ny"}, {"": "1", "a": "z"}]),
        (b'\xef\xbb\xbf"a x","b,c"\n1,2\n', "t.csv", [{"a x": "1", "b,c": "2"}]),
        (b'"a; in b; c",d\n1,2\n', "t.csv", [{"a; in b; c": "1", "d": "2"}]),
        (b"\n\r\na,b\n1,2\n", "t.csv", [{"a": "1", "b": "2"}]),
        (b"\xef\xbb\xbf\na\n1\n", "t.csv", [{"a": "1"}]),
        (b"one\nx\n", "t.csv", [{"one": "x"}]),
        (b"a,b\n", "t.csv", []),
        (b"", "t.csv", []),
    ],
)
def test_tables_as_they_come(tmp_path: Path, content: bytes, name: str, rows: list[dict[str, str]]) -> None:
    assert items_of(source_of(tmp_path, content, name)) == rows


@pytest.mark.parametrize(
    ("row", "trouble"),
    [
        (b"1,2,3\n", "t.csv:3 has 3 fields, and the first row 2"),
        (b"1\n", "t.csv:3 has 1 field, and the first row 2"),
        (b"\xff,1\n", "t.csv:3 is not UTF-8 text"),
        (b'"x"y,1\n', "t.csv:3 is no row of a table"),
    ],
)
def test_a_malformed_row_is_named_or_left_out(tmp_path: Path, row: bytes, trouble: str) -> None:
    content = b"a,b\n0,0\n" + row + b"1,1\n"
    source = source_of(tmp_path, content)
    blocks = source.blocks()
    assert next(blocks).items == [{"a": "0", "b": "0"}], "what lies before it is given"
    with pytest.raises(InputError, match=trouble):
        next(blocks)
    lenient = source_of(tmp_path, content, skip_bad_input=True)
    assert [item["a"] for item in items_of(lenient)] == ["0", "1"]
    assert lenient.skipped_places == [f"{tmp_path}/t.csv:3"]
    (block,) = lenient.blocks()
    assert [block.place_of(at) for at in range(2)] == [f"{tmp_path}/t.csv:{line}" for line in (2, 4)]


def test_all_lines_of_a_malformed_row_are_named(tmp_path: Path) -> None:
    source = source_of(tmp_path, b'a,b\n1,"2\n3,4\n5"x,6\n7,8\n', skip_bad_input=True)
    assert [item["a"] for item in items_of(source)] == ["7"]
    assert source.skipped_places == [f"{tmp_path}/t.csv:2-4"]


@pytest.mark.parametrize(("content", "line"), [(b"Gr\xf6\xdfe,b\n1,2\n", 1), (b"a,b\n1,2\nK\xf6ln,3\n", 3)])
def test_a_table_of_another_encoding_is_to_be_converted(tmp_path: Path, content: bytes, line: int) -> None:
    with pytest.raises(InputError, match=rf"t\.csv:{line} is not UTF-8 text\. Convert the file with iconv"):
        items_of(source_of(tmp_path, content))


def test_lines_that_end_as_on_old_macs_are_named_with_what_converts_them(tmp_path: Path) -> None:
    trouble = r"t\.csv:{} .* carriage return .* as on old Macs, with tr '\\r' '\\n'"
    with pytest.raises(InputError, match=trouble.format(1)):
        items_of(source_of(tmp_path, b"a,b\r1,2\r3,4\r"))
    with pytest.raises(InputError, match=trouble.format(2)):
        items_of(source_of(tmp_path, b"a,b\n1,2\r3,4\r"))


def test_a_quotation_mark_within_a_field_is_a_character_of_it(tmp_path: Path) -> None:
    content = b'a,b\n1,5" pipe\n2, "x\n3,y"\n'
    assert [item["b"] for item in items_of(source_of(tmp_path, content))] == ['5" pipe', ' "x', 'y"']


@pytest.mark.parametrize(
    ("rows", "trouble"),
    [
        (b'1,"x\n2,y\n3,"z"\n4,w\n', r"t\.csv:2-4 is no row of a table: "),
        (
            b'1,"x\n2,y\n3,z\n',
            r"t\.csv:2-4 is no row of a table: a quotation mark that nothing closes .*Close it, or",
        ),
    ],
)
def test_a_quotation_mark_before_a_field_takes_no_rows_in_silence(tmp_path: Path, rows: bytes, trouble: str) -> None:
    with pytest.raises(InputError, match=trouble):
        items_of(source_of(tmp_path, b"a,b\n" + rows))


def test_a_torn_row_that_was_left_out_is_read_when_it_is_whole(tmp_path: Path) -> None:
    torn = source_of(tmp_path, b"a,b\n1,2\n\n3", skip_bad_input=True)
    (block,) = torn.blocks()
    assert items_of(source_of(tmp_path, b"a,b\n1,2\n\n3,4\n"), block.checkpoint) == [{"a": "3", "b": "4"}]


def test_a_row_of_several_lines_moves_the_places_of_those_behind_it(tmp_path: Path) -> None:
    (block,) = source_of(tmp_path, b'a,b\n"x\ny",1\n2,2\n3,3\n').blocks()
    assert [block.place_of(at).rpartition(":")[2] for at in range(3)] == ["2", "4", "5"]


def test_every_block_knows_the_places_of_its_rows(tmp_path: Path) -> None:
    blocks = source_of(tmp_path, b"a\n1\n2\n3\n4\n", block_items=[1, 3]).blocks()
    places = [[block.place_of(at).rpartition(":")[2] for at in range(len(block.items))] for block in blocks]
    assert places == [["2"], ["3", "4", "5"]]


@pytest.mark.parametrize(
    ("content", "trouble"),
    [
        (b"a,b,a\n", "names the column 'a' twice"),
        (b"\xff,b\n", "t.csv:1 is not UTF-8 text"),
        (b'a,b\n1,"2\n' + b"3,4\n" * 100, "nothing closes"),
    ],
)
def test_what_is_no_table_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, trouble: str
) -> None:
    monkeypatch.setattr("batchd.sources.table._ROW_BYTES_MAX", 200)
    with pytest.raises(InputError, match=trouble):
        items_of(source_of(tmp_path, content))


def test_a_table_that_grew_goes_on_and_one_that_changed_does_not(tmp_path: Path) -> None:
    source = source_of(tmp_path, b"a,b\n1,2\n3,4")
    *_, behind = (block.checkpoint for block in source.blocks())
    assert items_of(source_of(tmp_path, b"a,b\n1,2\n3,4\n5,6\n"), behind) == [{"a": "5", "b": "6"}]
    for content, words in (
        (b"a,b\n1,2\n3,45\n", "unfinished last row"),
        (b"a,b\n1,2\n4,4\n5,6\n", "changed"),
        (b"a,c\n1,2\n3,4\n", "changed"),
        (b"a,a long name\n", "changed"),
        (b"a,b\n1,2\n", "end after"),
    ):
        with pytest.raises(InputChanged, match=words):
            items_of(source_of(tmp_path, content), behind)


def test_a_checkpoint_between_two_tables(tmp_path: Path) -> None:
    names = [str(tmp_path / name) for name in ("1.csv", "2.csv")]
    for name in names:
        Path(name).write_text(f"a\n{name[-5]}\n")
    source = TableSource(names, block_items=[1])
    first, last = (block.checkpoint for block in source.blocks())
    assert items_of(source, first) == [{"a": "2"}]
    assert items_of(source, last) == []
    Path(names[0]).write_text("a\n7\n")
    with pytest.raises(InputChanged):
        items_of(source, last)
    with pytest.raises(InputChanged):
        items_of(source, Checkpoint(2, last.offset + 1, last.digest))


def test_tables_are_not_mixed_with_lines(tmp_path: Path) -> None:
    for name in ("t.csv", "t.txt"):
        (tmp_path / name).write_text("a\n1\n")
    with pytest.raises(UsageError, match=r"t\.csv holds rows and .*t\.txt lines"):
        open_source([str(tmp_path / "t.csv"), str(tmp_path / "t.txt")])
    with pytest.raises(UsageError, match="--null cannot split"):
        open_source([str(tmp_path / "t.csv")], null=True)


def test_costs_are_numbers_in_a_column(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,pages\nx,3\ny,\nz,2.5\n")
    (block,) = open_source([str(tmp_path / "t.csv")], cost="pages").blocks()
    assert dict(block.costs) == {0: 3.0, 2: 2.5}
    with pytest.raises(InputError, match="has no 'size', which --cost size asks for"):
        list(open_source([str(tmp_path / "t.csv")], cost="size").blocks())
    (tmp_path / "t.csv").write_text("a,pages\nx,many\n")
    with pytest.raises(InputError, match="costs 'many' by --cost pages"):
        list(open_source([str(tmp_path / "t.csv")], cost="pages").blocks())


@pytest.mark.parametrize(("suffix", "items"), [(".txt", ["1", "2"]), (".jsonl", [1, 2])])
def test_compressed_files_are_read_as_what_they_hold(tmp_path: Path, suffix: str, items: list[Any]) -> None:
    name = tmp_path / f"in{suffix}.gz"
    name.write_bytes(gzip.compress(b"1\n") + gzip.compress(b"2\n"))
    source = open_source([str(name)])
    assert items_of(source) == items
    *_, behind = (block.checkpoint for block in source.blocks())
    name.write_bytes(gzip.compress(b"1\n2\n3\n"))
    assert [str(item) for item in items_of(open_source([str(name)]), behind)] == ["3"]


@pytest.mark.parametrize(
    "content",
    [b"no gzip", gzip.compress(b"1\n" * 9, mtime=0)[:-9], gzip.compress(b"1\n", mtime=0)[:12] + b"\xff" * 9],
)
@pytest.mark.parametrize("suffix", [".txt.gz", ".csv.gz"])
def test_what_cannot_be_unpacked_is_said(tmp_path: Path, content: bytes, suffix: str) -> None:
    (tmp_path / f"in{suffix}").write_bytes(content)
    with pytest.raises(InputError, match=r"cannot be unpacked: .* gzip -t"):
        items_of(open_source([str(tmp_path / f"in{suffix}")]))


def test_suffixes_are_known_in_any_case() -> None:
    assert has_suffix("A.CSV.GZ", (".csv",))
    assert not has_suffix("csv", (".csv",))
