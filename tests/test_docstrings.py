"""What users call says what it does, with an example that runs."""

import ast
import doctest
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

import fedact
from fedact.compression import METHODS

ROOT = Path(__file__).parent.parent
PUBLIC = {name: getattr(fedact, name) for name in fedact.__all__ if name != "compression"}
METHOD_CLASSES = {f"compression.METHODS[{name!r}]": method for name, method in METHODS.items()}


def examples() -> Iterator[tuple[str, str]]:
    """Yield (module, name) of every function and class of fedact whose docstring has an example; "" names the module."""
    for file in sorted((ROOT / "fedact").rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        if ">>>" in text:
            module = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            yield from ((module, name) for name, docstring in docstrings(ast.parse(text)) if ">>>" in docstring)


def docstrings(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the names under a node of a syntax tree that have a docstring, with it."""
    yield prefix, ast.get_docstring(tree) or ""
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            yield from docstrings(node, f"{prefix}.{node.name}".lstrip("."))


EXAMPLES = list(examples())


@pytest.mark.parametrize("name", [*PUBLIC, *METHOD_CLASSES])
def test_what_a_user_calls_has_an_example(name):
    called = {**PUBLIC, **METHOD_CLASSES}[name]
    module, own = called.__module__, called.__qualname__
    assert (module, own) in EXAMPLES


@pytest.mark.parametrize(("module", "name"), EXAMPLES, ids=[".".join(filter(None, each)) for each in EXAMPLES])
def test_an_example_runs(module, name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    loaded = documented = import_module(module)
    for part in filter(None, name.split(".")):
        documented = vars(documented)[part]
    documented = getattr(documented, "__wrapped__", documented)
    text = documented.fget.__doc__ if isinstance(documented, property) else documented.__doc__
    example = doctest.DocTestParser().get_doctest(text, dict(vars(loaded)), f"{module}.{name}", module, 0)
    result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example)
    assert result.attempted, "the parser found no example"
    assert not result.failed, capsys.readouterr().out
