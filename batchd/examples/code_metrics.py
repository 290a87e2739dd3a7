"""How large and how tangled a Python file is: a task with real CPU work and real failures.

The file is parsed, never imported. The one idea: one walk over the tree that carries along what surrounds a node, its
function and its depth, so that everything is counted in passing. A file that does not parse fails with its own error.
"""

import ast
import io
import tokenize
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

BLOCKS: Final = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try, ast.TryStar, ast.Match)
DECISIONS: Final = (ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.Assert)
LAYOUT: Final = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


def measure(path: str) -> dict[str, int | str]:
    """Sizes and complexities of one Python source file.

    Code lines are those with anything but comments, so docstrings count. Complexity is McCabe's: one for each
    function and one for each decision in it; functions inside it are counted for themselves. Nesting counts the
    statements around a statement that may choose, repeat or guard it. Names of functions carry their surroundings.
    """
    with tokenize.open(path) as file:
        text = file.read()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # What the compiler thinks of the file is not this task's news.
        tree = ast.parse(text, filename=path)
    survey = _Survey()
    survey.walk(tree)
    functions = survey.functions or [_Function(name="", lines=0, complexity=0)]
    worst = max(functions, key=lambda function: function.complexity)
    largest = max(functions, key=lambda function: function.lines)
    return {
        "path": path,
        "lines": text.count("\n") + (not text.endswith("\n") and bool(text)),
        "code_lines": _code_lines(text),
        "functions": len(survey.functions),
        "classes": survey.classes,
        "complexity": sum(function.complexity for function in survey.functions),
        "worst_complexity": worst.complexity,
        "worst_function": worst.name,
        "nesting": survey.nesting,
        "largest_lines": largest.lines,
        "largest_function": largest.name,
    }


@dataclass
class _Function:
    name: str
    lines: int
    complexity: int = 1


@dataclass(frozen=True)
class _Place:
    """What surrounds a node."""

    depth: int = 0
    name: str = ""
    function: _Function | None = None


@dataclass
class _Survey:
    """What the walk has found so far."""

    functions: list[_Function] = field(default_factory=list)
    classes: int = 0
    nesting: int = 0

    def walk(self, tree: ast.AST) -> None:
        """Visit every node in the order of the source; a stack, because a tree may be deeper than Python's own."""
        stack = [(tree, _Place())]
        while stack:
            node, place = stack.pop()
            inner = self._enter(node, place)
            if inner.function is not None:
                inner.function.complexity += _decisions(node)
            self.nesting = max(self.nesting, inner.depth)
            children = [(child, place if _is_elif(node, child) else inner) for child in ast.iter_child_nodes(node)]
            stack += reversed(children)

    def _enter(self, node: ast.AST, place: _Place) -> _Place:
        """What surrounds the node's children."""
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            name = f"{place.name}.{node.name}" if place.name else node.name
            if isinstance(node, ast.ClassDef):
                self.classes += 1
                return _Place(place.depth, name, place.function)
            function = _Function(name, lines=(node.end_lineno or node.lineno) - node.lineno + 1)
            self.functions.append(function)
            return _Place(place.depth, name, function)
        if isinstance(node, BLOCKS):
            return _Place(place.depth + 1, place.name, place.function)
        return place


def _decisions(node: ast.AST) -> int:
    """How many ways to go on this node adds."""
    match node:
        case ast.BoolOp():
            return len(node.values) - 1
        case ast.comprehension():
            return len(node.ifs)
        case ast.match_case():
            # `case _` is the way that is left over, as else is.
            is_rest = isinstance(node.pattern, ast.MatchAs) and node.pattern.pattern is None
            return (not is_rest) + (node.guard is not None)
    return int(isinstance(node, DECISIONS))


def _is_elif(node: ast.AST, child: ast.AST) -> bool:
    """Whether the child is an elif of the node: the tree has it inside, the eye sees it beside."""
    if not (isinstance(node, ast.If) and isinstance(child, ast.If) and node.orelse == [child]):
        return False
    return child.col_offset == node.col_offset


def _code_lines(text: str) -> int:
    lines = io.StringIO(text).readlines()
    covered = set(_covered(text))
    return sum(bool(lines[number - 1].strip()) for number in covered)


def _covered(text: str) -> Iterator[int]:
    """The numbers of the lines that tokens of code lie on; a string may lie on many."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in LAYOUT:
            yield from range(token.start[0], token.end[0] + 1)
