"""Text sources, whatever the bytes: the blocks are the items, and every checkpoint gives exactly the rest."""

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchd.errors import InputChanged
from batchd.sources import Checkpoint, TextSource
from tests.unit.test_sources import items_of

LINES = st.lists(st.text(st.characters(exclude_characters="\n\0\ufeff", exclude_categories=["Cs"]), max_size=9))
STRINGS = st.lists(st.text(st.characters(exclude_characters="\0\ufeff", exclude_categories=["Cs"]), max_size=9))
VALUES = st.lists(st.recursive(st.none() | st.integers() | st.text(max_size=5), st.lists, max_leaves=4))
CHUNK_BYTES = st.integers(1, 40) | st.just(1 << 20)
BLOCK_ITEMS = st.lists(st.integers(1, 5), min_size=1, max_size=3) | st.just([4096])
SMALL_TEXT = st.text("ab\n\r", max_size=20).map(str.encode)


@contextmanager
def files_of(contents: Sequence[bytes], suffix: str = ".txt") -> Iterator[list[str]]:
    """Names of files that live as long as one example."""
    with tempfile.TemporaryDirectory() as folder:
        names = [f"{folder}/{at}{suffix}" for at in range(len(contents))]
        for name, content in zip(names, contents, strict=True):
            Path(name).write_bytes(content)
        yield names


def check_every_checkpoint(source: TextSource, contents: Sequence[bytes], items: list[Any]) -> None:
    """Read once, then go on from behind each block."""
    blocks = list(source.blocks())
    assert [item for block in blocks for item in block.items] == items
    raw = b"".join(contents)
    given_items = 0
    for block in blocks:
        checkpoint = block.checkpoint
        given_items += len(block.items)
        assert checkpoint.items == given_items
        assert checkpoint.digest == blake2b(raw[: checkpoint.offset], digest_size=16).hexdigest()
        assert items_of(source, checkpoint) == items[given_items:]


def joined(pieces: list[str], separator: str, *, ended: bool) -> bytes:
    # What is not ended and empty at its end cannot be told from what has one piece less.
    ended = ended or pieces[-1:] == [""]
    return (separator.join(pieces) + separator * (ended and bool(pieces))).encode()


@given(st.lists(st.tuples(LINES, st.booleans()), min_size=1, max_size=3), CHUNK_BYTES, BLOCK_ITEMS)
def test_lines(files: list[tuple[list[str], bool]], chunk_bytes: int, block_items: list[int]) -> None:
    contents = [joined(lines, "\n", ended=ended) for lines, ended in files]
    items = [line.removesuffix("\r") for lines, _ in files for line in lines]
    with files_of(contents) as names:
        source = TextSource(names, chunk_bytes=chunk_bytes, block_items=block_items)
        check_every_checkpoint(source, contents, items)


@given(STRINGS, st.booleans(), CHUNK_BYTES, BLOCK_ITEMS)
def test_nul_separated_strings(strings: list[str], ended: bool, chunk_bytes: int, block_items: list[int]) -> None:
    contents = [joined(strings, "\0", ended=ended)]
    with files_of(contents) as names:
        source = TextSource(names, null=True, chunk_bytes=chunk_bytes, block_items=block_items)
        check_every_checkpoint(source, contents, strings)


@given(st.data(), VALUES, CHUNK_BYTES, BLOCK_ITEMS)
def test_json_lines_among_blank_and_bad_ones(
    data: st.DataObject, values: list[Any], chunk_bytes: int, block_items: list[int]
) -> None:
    lines: list[str] = []
    bad = 0
    for value in values:
        noise = data.draw(st.lists(st.sampled_from(["", " \r", "{", "\x85"]), max_size=3))
        bad += sum(line in {"{", "\x85"} for line in noise)
        lines += [*noise, json.dumps(value, ensure_ascii=data.draw(st.booleans()))]
    contents = ["".join(f"{line}\n" for line in lines).encode("utf-8", "backslashreplace")]
    with files_of(contents, ".jsonl") as names:
        source = TextSource(names, skip_bad_input=True, chunk_bytes=chunk_bytes, block_items=block_items)
        assert items_of(source) == values
        assert source.skipped == bad
        check_every_checkpoint(source, contents, values)


@given(SMALL_TEXT, SMALL_TEXT, CHUNK_BYTES)
def test_growth_is_continued_exactly_when_no_item_given_before_has_changed(
    before: bytes, added: bytes, chunk_bytes: int
) -> None:
    def lines(content: bytes) -> list[str]:
        pieces = content.decode().split("\n")
        return [piece.removesuffix("\r") for piece in (pieces if pieces[-1] else pieces[:-1])]

    with files_of([before]) as names:
        source = TextSource(names, chunk_bytes=chunk_bytes)
        *_, start = [Checkpoint(0, 0, ""), *(block.checkpoint for block in source.blocks())]
        Path(names[0]).write_bytes(before + added)
        unchanged = lines(before + added)[: start.items] == lines(before)
        try:
            rest = items_of(source, start)
        except InputChanged:
            assert not unchanged
        else:
            assert unchanged
            assert rest == lines(before + added)[start.items :]


@given(SMALL_TEXT.filter(bool), st.data())
def test_another_prefix_is_refused(content: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(content) - 1))
    other = content[:at] + b"c" + content[at + 1 :]
    with files_of([content]) as names:
        source = TextSource(names)
        *_, block = source.blocks()
        Path(names[0]).write_bytes(data.draw(st.sampled_from([other, content[:at]])))
        with pytest.raises(InputChanged, match=names[0]):
            items_of(source, block.checkpoint)
