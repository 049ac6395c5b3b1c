"""What is in no file, such as a network defined in a notebook, in other processes: each gets it before its first call."""

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from fedact.config.code import GIVEN
from fedact.config.errors import ConfigError
from fedact.processes.transfer import unpack


@dataclass(frozen=True)
class Handed:
    """An object as bytes, with the module and the name under which ``load_code`` finds it, and its digest."""

    module: str
    name: str
    digest: str
    content: bytes


def give(value: Any, name: str, digest: str) -> str:
    """Let ``load_code`` find an object in this process, and return the text that names it; digest: what it is known by.

    >>> from fedact.config.code_loading import load_code
    >>> load_code(give(abs, "absolute", "0123456789abcdef0123"))(-2)
    2
    """
    place = f"{GIVEN}{digest[:16]}"
    _put(place, name, digest, value)
    return f"{place}:{name}"


def packed(texts: Iterable[str]) -> tuple[Handed, ...]:
    """Return those of some texts of code that ``give`` made, such that another process can ``receive`` them.

    What it was defined with goes along, where no module has it. Raises ConfigError, in one line, where that is not possible.
    """
    found = []
    for place, _, name in (text.rpartition(":") for text in texts if text.startswith(GIVEN)):
        # Writes only: what is read here again is what this process has written.
        import cloudpickle  # type: ignore[import-untyped]

        module = sys.modules[place]
        try:
            content = cloudpickle.dumps(getattr(module, name))
        except Exception as error:  # whatever a stranger's object raises
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise ConfigError(
                f"{name} cannot be sent to other processes ({reason}): run it in one with workers=1, or put the function "
                "that makes it into a file of its own"
            ) from None
        found.append(Handed(place, name, vars(module)["DIGEST"], content))
    return tuple(found)


def receive(handed: tuple[Handed, ...]) -> None:
    """Let ``load_code`` find in this process what another has packed."""
    for each in handed:
        if each.module not in sys.modules:
            _put(each.module, each.name, each.digest, unpack(each.content))


def _put(place: str, name: str, digest: str, value: Any) -> None:
    module = ModuleType(place)
    vars(module).update({name: value, "DIGEST": digest})
    sys.modules[place] = module
