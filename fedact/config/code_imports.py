"""What code of the user's own imports from beside it: its import statements are read, and nothing is run."""

import ast
import sys
import sysconfig
from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path

from fedact.config.code import GIVEN, place_of
from fedact.config.code_digests import code_digest, file_of

OURS = "fedact"
"""The package that no run's table holds, wherever it lies."""
INSTALLED = {"site-packages", "dist-packages"}
"""Folders of what is installed, which no run's table holds either."""
FIRST = "__init__.py"


def imported_code(text: str) -> dict[str, str]:
    """Return the digests of the files that code imports from beside it, and that these do, as a run's table holds them.

    Of a file by their full paths; of a module by their modules' names, which lie elsewhere on another machine.
    """
    by_path = place_of(text).endswith(".py")
    found = beside(text).items()
    return {key: code_digest(key) for key in sorted(str(file) if by_path else name for name, file in found)}


def beside(text: str) -> dict[str, Path]:
    """Return the files that code imports from beside it, by the modules' names.

    Beside it are the modules and packages in the folder of its file, or in the folder that a module's first package lies in,
    but for what is installed, what Python finds elsewhere first, and fedact. Import statements count wherever they stand.
    """
    place = place_of(text)
    if place.startswith(GIVEN):
        return {}
    file = file_of(place, text).absolute()
    if place.endswith(".py"):
        module, folder = "", file.parent
    else:
        module, folder = place, file.parents[place.count(".") + (file.name == FIRST)]
        if _is_installed(folder):
            return {}
    found, queue = dict[str, Path](), [*_with_parents(module), *_imports(module, file)]
    while queue:
        name = queue.pop()
        if name not in found and (path := _in_folder(name, folder)):
            found[name] = path
            queue += _imports(name, path)
    return {name: path for name, path in found.items() if path != file}


def _imports(module: str, file: Path) -> Iterator[str]:
    """Yield the names of all modules that a file's import statements may mean, packages before what is in them."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):  # running it says so
        return
    package = module.split(".") if file.name == FIRST else module.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _with_parents(alias.name)
        elif isinstance(node, ast.ImportFrom) and node.level <= len(package):
            around = package[: len(package) + 1 - node.level] if node.level else []
            base = ".".join(filter(None, (*around, node.module)))
            for alias in node.names:
                yield from _with_parents(f"{base}.{alias.name}")


def _with_parents(name: str) -> Iterator[str]:
    parts = name.split(".") if name else []
    return (".".join(parts[: end + 1]) for end in range(len(parts)))


def _in_folder(name: str, folder: Path) -> Path | None:
    """Return the file of a module in a folder; None where there is none, or where another of its name comes first."""
    *parents, last = name.split(".")
    files = folder.joinpath(*parents, last, FIRST), folder.joinpath(*parents, f"{last}.py")
    file = next((file for file in files if file.is_file()), None)
    return file if file and _comes_first(name.partition(".")[0], folder.resolve()) else None


def _comes_first(first: str, folder: Path) -> bool:
    """Tell whether no module of this name lies where Python looks before it looks into a folder."""
    if first == OURS or first in sys.stdlib_module_names:
        return False
    spec = PathFinder.find_spec(first)
    return spec is None or spec.origin is None or Path(spec.origin).resolve().is_relative_to(folder)


def _is_installed(folder: Path) -> bool:
    return bool(INSTALLED.intersection(folder.parts)) or folder.is_relative_to(sysconfig.get_path("stdlib"))
