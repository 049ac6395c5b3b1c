"""Small faults drawn from the syntax tree: one comparison flipped, one call dropped, one number off by one."""

import ast
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv,
}  # fmt: skip
DROPPABLE = {"clone", "detach", "contiguous", "copy", "abs", "sqrt", "square", "double", "float", "mean", "sum"}
"""Calls without arguments that are left out."""
COUNTING = {"range", "min", "max"}
"""Calls whose numbers are counts."""


class Site(NamedTuple):
    """A place for a fault. start and end: of the text it replaces, in bytes of the file."""

    path: str
    line: int
    start: int
    end: int
    kind: str
    old: str
    new: str
    rank: str


def sites(root: Path, seed: int) -> list[Site]:
    """Return every place for a fault in the functions of fedact/, in an order drawn from the seed.

    A place's rank follows from the seed, its function's name and its statement alone: a change elsewhere moves no other.
    """
    found = [site for path in sorted((root / "fedact").rglob("*.py")) for site in _in_file(root, path, seed)]
    return sorted(found, key=lambda site: site.rank)


def _in_file(root: Path, path: Path, seed: int) -> Iterator[Site]:
    source = path.read_bytes()
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))

    def span(node: ast.AST) -> tuple[int, int]:
        return starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset  # type: ignore[attr-defined]

    seen: Counter[str] = Counter()
    for function in _functions(ast.parse(source)):
        for statement in _statements(function):
            text = source[slice(*span(statement))].decode()
            for node in _expressions(statement):
                for kind, new in _faults(node):
                    start, end = span(node)
                    old = source[start:end].decode()
                    key = f"{seed} {function.name} {' '.join(text.split())} {kind} {old}"
                    seen[key] += 1
                    rank = hashlib.sha256(f"{key} {seen[key]}".encode()).hexdigest()
                    yield Site(str(path.relative_to(root)), node.lineno, start, end, kind, old, new, rank)


def _functions(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    """Yield the outermost functions and methods."""
    for node in tree.body:
        inner = node.body if isinstance(node, ast.ClassDef) else [node]
        yield from (each for each in inner if isinstance(each, ast.FunctionDef))


def _statements(function: ast.FunctionDef) -> Iterator[ast.stmt]:
    """Yield a function's statements, nested ones after their own heads."""
    waiting = list(function.body)
    while waiting:
        statement = waiting.pop(0)
        if isinstance(statement, ast.Raise | ast.Assert) or _is_text(statement):
            continue
        yield statement
        waiting += [node for node in ast.walk(statement) if isinstance(node, ast.stmt) and _parent(statement, node)]


def _parent(statement: ast.stmt, node: ast.stmt) -> bool:
    blocks = [getattr(statement, name, []) for name in ("body", "orelse", "finalbody")]
    blocks += [handler.body for handler in getattr(statement, "handlers", [])]
    return any(node is each for block in blocks for each in block)


def _is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _expressions(statement: ast.stmt) -> Iterator[ast.expr]:
    """Yield the expressions of a statement's own, without those of the statements in it and without annotations."""
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
        statement.value.dropped = True  # type: ignore[attr-defined]
    if isinstance(statement, ast.If | ast.While):
        statement.test.condition = True  # type: ignore[attr-defined]
    waiting: list[ast.AST] = [statement]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.expr):
            yield node
        if isinstance(node, ast.IfExp):
            node.test.condition = True  # type: ignore[attr-defined]
        if isinstance(node, ast.comprehension):
            for test in node.ifs:
                test.condition = True  # type: ignore[attr-defined]
        for child in _numbers(node):
            child.counts = True  # type: ignore[attr-defined]
        waiting += [
            child
            for name, value in ast.iter_fields(node)
            if name not in ("annotation", "returns", "decorator_list")
            for child in (value if isinstance(value, list) else [value])
            if isinstance(child, ast.AST) and not isinstance(child, ast.stmt | ast.JoinedStr)
        ]


def _numbers(node: ast.AST) -> list[ast.Constant]:
    """Return the whole numbers that count or bound something in an expression."""
    places: list[ast.AST | None] = []
    if isinstance(node, ast.Compare):
        places = [node.left, *node.comparators]
    elif isinstance(node, ast.BinOp):
        places = [node.left, node.right]
    elif isinstance(node, ast.Subscript):
        places = [node.slice]
    elif isinstance(node, ast.Slice):
        places = [node.lower, node.upper]
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in COUNTING:
        places = list(node.args)
    return [place for place in places if isinstance(place, ast.Constant) and type(place.value) is int]


def _faults(node: ast.expr) -> Iterator[tuple[str, str]]:
    for kind, fault in FAULTS.items():
        if new := fault(node):
            yield kind, new


def _comparison(node: ast.expr) -> str:
    if not (isinstance(node, ast.Compare) and len(node.ops) == 1):
        return ""
    return ast.unparse(ast.Compare(node.left, [COMPARISONS[type(node.ops[0])]()], node.comparators))


def _operator(node: ast.expr) -> str:
    if not (isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC) or any(map(_is_words, (node.left, node.right))):
        return ""
    return f"({ast.unparse(ast.BinOp(node.left, ARITHMETIC[type(node.op)](), node.right))})"


def _is_words(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr | ast.List | ast.Tuple) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def _off_by_one(node: ast.expr) -> str:
    return str(node.value + 1) if isinstance(node, ast.Constant) and getattr(node, "counts", False) else ""


def _negation(node: ast.expr) -> str:
    return f"not ({ast.unparse(node)})" if getattr(node, "condition", False) else ""


def _dropped_copy(node: ast.expr) -> str:
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in DROPPABLE):
        return ""
    return "" if node.args or node.keywords else ast.unparse(node.func.value)


def _swapped(node: ast.expr) -> str:
    if not isinstance(node, ast.Call) or len(node.args) < 2 or any(isinstance(arg, ast.Starred) for arg in node.args[:2]):
        return ""
    first, second, *others = node.args
    if ast.dump(first) == ast.dump(second):
        return ""
    return ast.unparse(ast.Call(node.func, [second, first, *others], node.keywords))


def _dropped_call(node: ast.expr) -> str:
    return "None" if getattr(node, "dropped", False) else ""


def _other_junction(node: ast.expr) -> str:
    if not isinstance(node, ast.BoolOp):
        return ""
    return f"({ast.unparse(ast.BoolOp(ast.And() if isinstance(node.op, ast.Or) else ast.Or(), node.values))})"


FAULTS: dict[str, Callable[[ast.expr], str]] = {
    "a comparison flipped": _comparison,
    "another operator": _operator,
    "off by one": _off_by_one,
    "a condition negated": _negation,
    "a call left out of an expression": _dropped_copy,
    "arguments swapped": _swapped,
    "a statement left out": _dropped_call,
    "and for or, or for and": _other_junction,
}
