"""The example task: what it counts, on sources small enough to count by hand."""

import textwrap
from pathlib import Path

import pytest

from batchd.examples.code_metrics import measure


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tmp_path / "source.py"


def measured(source: Path, text: str) -> dict[str, int | str]:
    source.write_text(textwrap.dedent(text), encoding="utf-8")
    return measure(str(source))


def complexity(source: Path, body: str) -> int | str:
    return measured(source, "def f(a, b, c):\n" + textwrap.indent(textwrap.dedent(body), "    "))["complexity"]


def test_an_empty_file_measures_nothing(source: Path) -> None:
    assert measured(source, "") == {
        "path": str(source),
        "lines": 0,
        "code_lines": 0,
        "functions": 0,
        "classes": 0,
        "complexity": 0,
        "worst_complexity": 0,
        "worst_function": "",
        "nesting": 0,
        "largest_lines": 0,
        "largest_function": "",
    }


def test_a_file_is_measured_whole(source: Path) -> None:
    text = '''\
        """Two lines
        # of docstring, with a blank one

        between."""
        # A comment.

        class Shelf:
            def sort(self, key):  # 2
                for book in self.books:
                    if book:

                        book.sort(key)

            async def close(self): ...

        def first(items):
            return items[0]'''
    assert measured(source, text) == {
        "path": str(source),
        "lines": 17,
        "code_lines": 11,
        "functions": 3,
        "classes": 1,
        "complexity": 5,
        "worst_complexity": 3,
        "worst_function": "Shelf.sort",
        "nesting": 2,
        "largest_lines": 5,
        "largest_function": "Shelf.sort",
    }


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("pass", 1),
        ("if a: pass\nelif b: pass\nelse: pass", 3),
        ("for x in a: pass\nelse: pass", 2),
        ("while a: pass", 2),
        ("with a: pass", 1),
        ("try: pass\nexcept OSError: pass\nexcept ValueError: pass\nfinally: pass", 3),
        ("try: pass\nexcept* OSError: pass", 2),
        ("return a and b and c or a", 4),
        ("return a if b else c", 2),
        ("return [x for x in a if x if b]", 3),
        ("assert a", 2),
        ("match a:\n  case 1: pass\n  case [x] if x: pass\n  case _: pass", 4),
        ("match a:\n  case x: pass", 1),
        ("match a:\n  case [x] as y: pass", 2),
        ("return lambda: a or b", 2),
    ],
)
def test_each_decision_adds_one(source: Path, body: str, expected: int) -> None:
    assert complexity(source, body) == expected


def test_functions_inside_a_function_are_counted_for_themselves(source: Path) -> None:
    measures = measured(source, "def f(a):\n  def g(b):\n    if b: return a or b\n  return g\n")
    assert measures["functions"] == 2
    assert (measures["complexity"], measures["worst_function"], measures["worst_complexity"]) == (4, "f.g", 3)
    assert (measures["largest_function"], measures["largest_lines"]) == ("f", 4)


def test_of_equals_the_first_is_named(source: Path) -> None:
    measures = measured(source, "def b(): pass\nclass C:\n  def a(self): pass\ndef d(): pass\n")
    assert (measures["worst_function"], measures["largest_function"]) == ("b", "b")


def test_decisions_outside_functions_belong_to_none(source: Path) -> None:
    assert measured(source, "if a: pass\ndef f(): pass\n")["complexity"] == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("if a:\n  pass\nelif b:\n  pass\nelif c:\n  pass\n", 1),
        ("if a:\n  pass\nelse:\n  if b:\n    pass\n", 2),
        ("try:\n  with a:\n    while b:\n      match c:\n        case 1: pass\nexcept E: pass\n", 4),
        ("if a:\n  def f():\n    for x in y: pass\n", 2),
        ("class A:\n  def f(self): pass\n", 0),
    ],
)
def test_nesting_is_what_the_eye_sees(source: Path, text: str, expected: int) -> None:
    assert measured(source, text)["nesting"] == expected


def test_a_long_chain_does_not_exhaust_the_stack(source: Path) -> None:
    chain = "if a == 0: pass\n" + "".join(f"elif a == {n}: pass\n" for n in range(1, 200))
    measures = measured(source, "def f(a):\n" + textwrap.indent(chain, "    "))
    assert (measures["complexity"], measures["nesting"]) == (201, 1)


def test_the_coding_cookie_is_honoured(source: Path) -> None:
    source.write_bytes(b"# -*- coding: latin-1 -*-\nname = '\xe9'\n")
    assert measure(str(source))["code_lines"] == 1


def test_what_does_not_parse_fails_with_its_place(source: Path) -> None:
    with pytest.raises(SyntaxError) as caught:
        measured(source, "x = 1\ndef f(:\n")
    assert (caught.value.filename, caught.value.lineno) == (str(source), 2)


def test_warnings_of_the_compiler_are_not_the_tasks(source: Path) -> None:
    # The test run turns warnings into errors: an escaping one would fail here.
    assert measured(source, r"x = '\d'" + "\ny = 1 is 1\n")["lines"] == 2
