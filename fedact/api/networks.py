"""A network as ``fedact.run`` is given it, a module or a function, as the text by which every process finds it."""

import ast
import copy
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any

from torch import nn

from fedact.api.identity import function_digest, module_digest
from fedact.config.code import PRIVATE
from fedact.config.errors import ConfigError
from fedact.nn.surgery import restore
from fedact.processes.handover import give

MAIN = "__main__"


def network_text(model: Any) -> str:
    """Return the text that names a network: a function by its module or file, what is in none by what it is made of.

    model: a module, which is copied, or a function from a number of classes to one. Raises ConfigError for anything else.
    """
    if isinstance(model, nn.Module):
        try:
            own = restore(copy.deepcopy(model)).cpu()
        except Exception as error:
            raise ConfigError(f"model cannot be copied: {' '.join(f'{type(error).__name__}: {error}'.split())}") from None
        return give(own, type(model).__name__, module_digest(own))
    if not callable(model):
        raise ConfigError(
            f"model is a {type(model).__name__}: it is a name, a torch.nn.Module, or a function from a number of classes to "
            "a torch.nn.Module"
        )
    return _in_file(model) or give(model, _name(model), function_digest(model))


def _name(function: Any) -> str:
    name = str(getattr(function, "__name__", type(function).__name__))
    return name if name.isidentifier() else "build"


def _in_file(function: Any) -> str | None:
    """Return PATH.py:NAME or package.module:NAME of a function that another process can import; None where it cannot."""
    place, name = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    module = sys.modules.get(place) if isinstance(place, str) else None
    if module is None or not isinstance(name, str):
        return None
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part, None)
    file = getattr(module, "__file__", None)
    if found is not function or file is None or not Path(file).is_file():
        return None
    if str(place).startswith(PRIVATE):
        return f"{file}:{name}"
    if place == MAIN:
        # A script without a guard would run as a whole in every process, and start the run again.
        return f"{Path(file).absolute()}:{name}" if file.endswith(".py") and _is_guarded(Path(file), name) else None
    with suppress(ImportError, ValueError):
        spec = find_spec(str(place))
        if spec is not None and spec.origin and Path(spec.origin).is_file():
            return f"{place}:{name}"
    return None


def _is_guarded(script: Path, name: str) -> bool:
    """Tell whether a script now runs what stands under ``if __name__ == "__main__":``, and defines a name outside of it."""
    line = _line_of(script)
    try:
        body = ast.parse(script.read_bytes()).body
    except (OSError, SyntaxError, ValueError):
        return False
    guards = [node for node in body if isinstance(node, ast.If) and MAIN in ast.unparse(node.test)]
    defined = {node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    inside = line is not None and any(guard.lineno <= line <= (guard.end_lineno or 0) for guard in guards)
    return inside and name.partition(".")[0] in defined


def _line_of(script: Path) -> int | None:
    """Return the line at which the outermost code of a script is, None where it is not running."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name == "<module>" and frame.f_globals.get("__name__") == MAIN:
            return frame.f_lineno if Path(frame.f_code.co_filename).name == script.name else None
        frame = frame.f_back
    return None
