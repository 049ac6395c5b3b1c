"""The tests' own shape: what two test modules share lies in tests/support."""

import ast
from pathlib import Path

import pytest

from tests.support.faults import BY_HAND, DRAWN, by_hand, drawn

TESTS = Path(__file__).parent


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", sorted(TESTS.rglob("*.py")), ids=lambda path: str(path.relative_to(TESTS)))
def test_no_test_module_is_imported(path):
    assert not {name for name in imported(path) if any(part.startswith("test_") for part in name.split(".")[:-1])}
    assert not {name for name in imported(path) if name.startswith(".")}


@pytest.mark.exhaustive
def test_forty_faults_can_still_be_put_into_the_product():
    assert (len(by_hand()), len(drawn())) == (len(BY_HAND), DRAWN) == (20, 20)
