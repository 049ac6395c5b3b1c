"""What code of the user's own is known by: the SHA-256 of its file. Runs none of it, but the packages around a module."""

import sys
from collections.abc import Mapping
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from fedact.config.code import GIVEN, names_code, place_of
from fedact.config.errors import ConfigError, nearest


def code_digest(text: str) -> str:
    """Return the SHA-256 of the bytes of the file that code lies in; raises ConfigError where there is none.

    text: code, or what a table of digests calls a file that code imports (see ``code_imports``).
    """
    place = place_of(text) if names_code(text) else text
    if place.startswith(GIVEN):
        return str(vars(given_module(place, text))["DIGEST"])
    return sha256(content(file_of(place, text), text)).hexdigest()


def check_digest(text: str, due: str) -> None:
    """Raise ConfigError where the file that code lies in, or one that it imports, is not the one with this digest."""
    check(text, due, code_digest(text))


def check(text: str, due: str, found: str) -> None:
    """Raise ConfigError where code has another digest than is due."""
    if found != due:
        raise ConfigError(
            f"{text} has changed: its file's SHA-256 was {due[:12]}, and is {found[:12]}: restore it, or start another run"
        )


def known_by(text: str, digests: Mapping[str, str]) -> str | None:
    """Return what a run knows its code by: its file's digest, or one of it and of all that is imported from beside code.

    digests: the run's table; None where the code is not in it.
    """
    own, others = digests.get(text), sorted(digest for key, digest in digests.items() if not names_code(key))
    return own if own is None or not others else sha256(" ".join([own, *others]).encode()).hexdigest()


def given_module(place: str, text: str) -> ModuleType:
    """Return the module of what ``fedact.run`` was given and no file holds; raises ConfigError where it is not here."""
    if place not in sys.modules:
        raise ConfigError(f"{text.rpartition(':')[2]} is in no file: call fedact.run again with what it was given")
    return sys.modules[place]


def content(file: Path, text: str) -> bytes:
    """Return a file's bytes; raises ConfigError where there are none."""
    if not file.is_file():
        others = [other.name for other in file.absolute().parent.glob("*.py")]
        raise ConfigError(f"{text}: there is no file {file}{nearest(file.name, others)}")
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigError(f"{text}: {file} cannot be read: {error.strerror}") from None


def import_error(error: BaseException, place: str, text: str) -> ConfigError:
    """Return the error for a module that is not there, or fails."""
    if isinstance(error, ConfigError):
        return error
    if isinstance(error, ModuleNotFoundError) and error.name and f"{place}.".startswith(f"{error.name}."):
        return ConfigError(f"{text}: there is no module {error.name}")
    return failure(text, error)


def failure(text: str, error: BaseException, file: str | None = None) -> ConfigError:
    """Return the error for code that failed, with the last of its own lines that it came through."""
    line = error.lineno if isinstance(error, SyntaxError) and error.filename == file else None
    step = error.__traceback__
    while step is not None and not isinstance(error, SyntaxError):
        line = step.tb_lineno if step.tb_frame.f_code.co_filename == file else line
        step = step.tb_next
    reason = " ".join(str(error).split())
    at = f", line {line}" if line else ""
    return ConfigError(f"{text} fails{at}: {type(error).__name__}{f': {reason}' if reason else ''}")


def file_of(place: str, text: str) -> Path:
    """Return the file that a place of code is or has; raises ConfigError where a module is not there."""
    if place.endswith(".py"):
        return Path(place)
    try:
        spec = find_spec(place)
    except Exception as error:  # the package around it fails, or there is none
        raise import_error(error, place, text) from None
    if spec is None or not spec.origin or not Path(spec.origin).is_file():
        raise ConfigError(f"{text}: there is no module {place} with a file of its own")
    return Path(spec.origin)
