"""Forty small faults, put into the product one at a time: does the fast suite notice?

``python -m tests.support.faults [--list] [--only N ...] [--contexts FILE] [--pytest ARGUMENTS]``: twenty faults by hand, and
twenty drawn from the syntax tree. Each goes into a copy of the tree, and the fast suite runs on it until a test fails: first
what the contexts of a coverage run (``--cov --cov-branch --cov-context=test``) say runs the changed lines, the package's own
tests before the others, then the whole suite. Prints for each fault the test that caught it, or that it survived; exits with
1 if one did.
"""

import argparse
import ast
import os
import shlex
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.syntax_faults import sites

ROOT = Path(__file__).parents[2]
SEED, DRAWN = 826, 20
SECONDS = 1800
"""A suite that takes longer hangs: the fault is caught."""
LEFT_OUT = shutil.ignore_patterns(".git", ".venv", "__pycache__", ".*_cache", "shared", "runs", "site", ".coverage*")


class Fault(NamedTuple):
    """A snippet of a file, what stands there instead, and what that is. start: in bytes, where the snippet lies."""

    path: str
    start: int
    old: str
    new: str
    what: str


BY_HAND = [
    ("config/budgets.py", "np.argsort(floors - exact,", "np.argsort(exact - floors,", "the smallest remainders win"),
    ("config/seeds.py", "[seed, round, client, int(purpose)]", "[seed, round, int(purpose)]", "all clients draw the same"),
    (
        "storage/disk.py",
        "            opened.flush()\n            os.fsync(opened.fileno())\n        replace",
        "            opened.flush()\n        replace",
        "a file takes another's place before it is on the disk",
    ),
    ("data/augmentation.py", "target.flip(-1) if target.dim() else target", "target", "a mask stays unflipped"),
    (
        "compression/lowrank/algebra.py",
        "variance * explained[-1])) + 1",
        "variance * explained[-1]))",
        "one rank too few for the variance",
    ),
    (
        "training/local.py",
        "parameter.detach().clone() for",
        "parameter.detach() for",
        "FedProx's start moves with the weights",
    ),
    ("compression/packing.py", "alpha=2**-16", "alpha=2**-17", "half the noise: rounding is no longer unbiased"),
    ("nn/layers/pooling.py", "rows.mul_(self.kernel[1])", "rows.mul_(self.kernel[0])", "the wrong axis of a window"),
    ("nn/layers/codec.py", "self.states[size] = compressed.state", "pass", "a warm start is forgotten"),
    ("measure/lifetimes.py", "(end, 1, -size)", "(end, 0, -size)", "what ends is gone before what begins at once"),
    ("measure/gradient_error.py", "max(count - 1, 1)", "count", "a variance over n"),
    ("planner/problem.py", "size <= self.budget", "size <= self.budget + 64", "a budget check loosened by 64 bytes"),
    ("planner/knapsack.py", "groups[done:]", "groups[done - 1 :]", "room for a tensor counted twice"),
    (
        "training/local.py",
        ".add_(parameter, alpha=mu).sub_(start, alpha=mu)",
        ".sub_(parameter, alpha=mu).add_(start, alpha=mu)",
        "FedProx pushes away from the start",
    ),
    ("training/averaging.py", "self.weights.get(name, 0) + weight", "self.weights.get(name, 0) + 1", "a mean over clients"),
    (
        "federation/replies.py",
        "all(isfinite(float(end)) for end",
        "all(not isnan(float(end)) for end",
        "infinities come through",
    ),
    ("federation/method_run.py", "count, replace=False", "count, replace=True", "a client is drawn twice"),
    ("models/pixel_loss.py", "gradient.mul_(counts)", "gradient", "void pixels have a gradient"),
    ("reports/comparison/statistics.py", "spreads**2 + means**2", "spreads**2", "a spread without the means' own"),
    ("cli/resume.py", "max(given.seeds, begun.seeds)", "given.seeds", "a run loses its seeds when it goes on"),
]


def by_hand(root: Path = ROOT) -> list[Fault]:
    """Return the faults by hand; raises ValueError where a snippet is not there exactly once."""
    found = []
    for path, old, new, what in BY_HAND:
        source = (root / "fedact" / path).read_bytes()
        if source.count(old.encode()) != 1:
            raise ValueError(f"fedact/{path} has {old!r} {source.count(old.encode())} times, not once")
        found.append(Fault(f"fedact/{path}", source.index(old.encode()), old, new, what))
    return found


def drawn(root: Path = ROOT) -> list[Fault]:
    """Return the faults drawn from the syntax tree: the first of each kind, then the second, until there are enough."""
    order = sites(root, SEED)
    turns = {site: sum(other.kind == site.kind for other in order[:place]) for place, site in enumerate(order[: 40 * DRAWN])}
    chosen = sorted(turns, key=lambda site: (turns[site], site.rank))[:DRAWN]
    return [Fault(site.path, site.start, site.old, site.new, site.kind) for site in chosen]


def apply(fault: Fault, root: Path) -> None:
    """Put a fault into a tree."""
    file, old = root / fault.path, fault.old.encode()
    source = file.read_bytes()
    assert source[fault.start :].startswith(old), f"{fault.path} is another file than the fault was made for"
    file.write_bytes(source[: fault.start] + fault.new.encode() + source[fault.start + len(old) :])


def lines_of(fault: Fault, root: Path = ROOT) -> range:
    """Return the numbers of the lines of the statement that a fault is in, of a compound one its head's."""
    source = (root / fault.path).read_bytes()
    line = source[: fault.start].count(b"\n") + 1
    heads = [range(line, line + fault.old.count("\n") + 1)]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.stmt):
            body = getattr(node, "body", None)
            head = range(node.lineno, max(node.lineno, body[0].lineno - 1 if body else node.end_lineno) + 1)
            heads += [head] if line in head else []
    return heads[-1]


def named_by(fault: Fault, contexts: Path, root: Path = ROOT) -> list[str]:
    """Return the tests that run a fault's lines, those of its package first, of each module one before the next."""
    with sqlite3.connect(contexts) as database:
        rows = database.execute(
            "SELECT context.context, arcs.fromno, arcs.tono FROM arc AS arcs JOIN context ON context.id = arcs.context_id "
            "JOIN file ON file.id = arcs.file_id WHERE file.path LIKE ?",
            [f"%/{fault.path}"],
        ).fetchall()
    lines = set(lines_of(fault, root))
    names = {context.partition("|")[0] for context, *arc in rows if lines & {abs(number) for number in arc}} - {""}
    package = fault.path.split("/")[1]
    turns: dict[str, int] = {}
    for name in sorted(names):
        module = name.partition("::")[0]
        turns[name] = sum(other.partition("::")[0] == module for other in turns)
    return sorted(names, key=lambda name: (not name.startswith(f"tests/{package}/"), turns[name], name))


def run(
    fault: Fault, first: Sequence[str], arguments: Sequence[str], whole: bool = True, tests: Path = ROOT / "tests"
) -> str:
    """Return the test that catches a fault, "" where none does."""
    package = f"tests/{fault.path.split('/')[1]}"
    with tempfile.TemporaryDirectory(prefix="fault") as folder:
        tree = Path(folder) / "tree"
        shutil.copytree(ROOT, tree, ignore=LEFT_OUT)
        shutil.rmtree(tree / "tests")
        shutil.copytree(tests, tree / "tests", ignore=LEFT_OUT)
        apply(fault, tree)
        own = [name for name in first if name.startswith(f"{package}/")]
        others = [name for name in first if name not in own]
        if not first and (tree / package).is_dir():
            own = [package]
        everything = [["tests"]] if whole else []
        return next(
            (caught for part in (own, others, *everything) if part and (caught := _caught(tree, part, arguments))), ""
        )


def _caught(tree: Path, tests: Sequence[str], arguments: Sequence[str]) -> str:
    (tree / "chosen.txt").write_text("\n".join(tests))
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *arguments, f"@{tree / 'chosen.txt'}"]
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return f"no end after {SECONDS} s"
    if done.returncode == pytest.ExitCode.USAGE_ERROR and any("::" in name for name in tests):
        # A test that has another name now.
        modules = dict.fromkeys(name.partition("::")[0] for name in tests)
        return _caught(tree, [name for name in modules if (tree / name).exists()], arguments)
    if done.returncode in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        return ""
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return failed[0] if failed else f"exit code {done.returncode}: {(done.stderr or done.stdout)[-300:]}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="show the faults and run nothing")
    parser.add_argument("--only", type=int, nargs="+", help="these faults, by their numbers in the list")
    parser.add_argument("--contexts", type=Path, default=ROOT / ".coverage", help="data of a coverage run with contexts")
    parser.add_argument("--pytest", default="", help="more arguments for pytest")
    parser.add_argument("--chosen-only", action="store_true", help="only the tests that the contexts name")
    parser.add_argument("--tests", type=Path, default=ROOT / "tests", help="the tests to run, another tree's")
    given = parser.parse_args(arguments)
    faults, survived = [*by_hand(), *drawn()], 0
    for number, fault in enumerate(faults):
        if given.only and number not in given.only:
            continue
        line = f"{number:2} {fault.path}:{lines_of(fault)[0]} {fault.what}: {fault.old!r} -> {fault.new!r}"
        if given.list:
            print(line)
            continue
        first = named_by(fault, given.contexts) if given.contexts.exists() else []
        started = time.monotonic()
        caught = run(fault, first, shlex.split(given.pytest), not given.chosen_only, given.tests)
        survived += not caught
        print(f"{line}\n   {caught or 'SURVIVED'} ({time.monotonic() - started:.0f} s, {len(first)} tests)", flush=True)
    return int(survived > 0)


if __name__ == "__main__":
    sys.exit(main())
