"""The only place that runs code of the user's own: what a person named at the keyboard, once in a process."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from fedact.config.code import GIVEN, PRIVATE, names_code, split_code
from fedact.config.code_digests import check_digest, code_digest, content, failure, given_module, import_error
from fedact.config.code_imports import beside
from fedact.config.errors import ConfigError, nearest


def load_code(text: str, digests: Mapping[str, str] | None = None) -> Any:
    """Return what code names, running its file or importing its module, once in a process.

    digests: a run's table, of its file and of what code imports from beside it; by default these may be whatever they are.
    Raises ConfigError, in one line, where a file is missing, fails or is another, and where it lacks the name.

    >>> load_code("collections.abc:Mapping")
    <class 'collections.abc.Mapping'>
    """
    code = split_code(text)[0]
    place, _, name = code.rpartition(":")
    for key, due in (digests or {}).items():
        if key == code or not names_code(key):
            check_digest(key, due)
    found: Any = _of_file(Path(place), text) if place.endswith(".py") else _of_module(place, text)
    for part in name.split("."):
        names = [known for known in vars(found) if not known.startswith("_")] if hasattr(found, "__dict__") else []
        if not hasattr(found, part):
            raise ConfigError(f"{text}: there is no {part!r} in {place}{nearest(part, names)}")
        found = getattr(found, part)
    return found


def loaded_code(text: str) -> Any:
    """Return what code names, where this process has run it already, else None; nothing is run.

    >>> loaded_code("collections.abc:Mapping"), loaded_code("no.such.module:Name")
    (<class 'collections.abc.Mapping'>, None)
    """
    place, _, name = split_code(text)[0].rpartition(":")
    if place.endswith(".py"):
        file, modules = str(Path(place).absolute()), list(sys.modules.items())
        # The last: a file that was changed since is there twice.
        loaded = [module for key, module in modules if key.startswith(PRIVATE) and vars(module).get("__file__") == file]
        found: Any = loaded[-1] if loaded else None
    else:
        found = sys.modules.get(place)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def own_failure(error: BaseException) -> str | None:
    """Return where in a file of the user's own an error came from, and what it says; None where from no such file."""
    step, found = error.__traceback__, None
    while step is not None:
        inside = str(step.tb_frame.f_globals.get("__name__", "")).startswith(PRIVATE)
        found, step = (step if inside else found), step.tb_next
    if found is None:
        return None
    reason = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(": ")
    return f"{found.tb_frame.f_code.co_filename}, line {found.tb_lineno}, fails: {reason}"


def file_being_run() -> str | None:
    """Return a file that ``load_code`` is running right now, None where there is none."""
    running = (module for name, module in list(sys.modules.items()) if name.startswith(PRIVATE))
    return next((str(module.__file__) for module in running if getattr(module, "RUNNING", False)), None)


def _of_file(file: Path, text: str) -> ModuleType:
    source, files = content(file, text), beside(text)
    imported = {str(each): code_digest(str(each)) for each in sorted(files.values())}
    known = " ".join([str(file.absolute()), sha256(source).hexdigest(), *imported.values()])
    name = f"{PRIVATE}{sha256(known.encode()).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    module = ModuleType(name)
    module.__file__ = str(file.absolute())
    vars(module).update(RUNNING=True, IMPORTED=imported)
    _forget_others(files, imported)
    sys.modules[name] = module
    try:
        with _importable(file.absolute().parent):
            exec(compile(source, str(file), "exec", dont_inherit=True), vars(module))  # noqa: S102  # what was asked for
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, ConfigError) or not isinstance(error, Exception | SystemExit):
            raise
        raise failure(text, error, str(file)) from None
    del vars(module)["RUNNING"]
    return module


def _forget_others(files: Mapping[str, Path], digests: Mapping[str, str]) -> None:
    """Let these modules be imported anew where one was imported from another file, or from what this file was earlier."""
    earlier = dict[str, str]()
    for key, module in list(sys.modules.items()):
        if key.startswith(PRIVATE):
            earlier |= vars(module).get("IMPORTED", {})
    there = {name: str(vars(sys.modules[name]).get("__file__")) for name in files if name in sys.modules}
    if any(file != str(files[name]) or earlier.get(file, digests[file]) != digests[file] for name, file in there.items()):
        for name in files:
            sys.modules.pop(name, None)


def _of_module(place: str, text: str) -> ModuleType:
    if place.startswith(GIVEN):
        return given_module(place, text)
    try:
        return import_module(place)
    except (Exception, SystemExit) as error:
        raise import_error(error, place, text) from None


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Within this context a file may import what lies beside it, as a script may; what is installed comes first."""
    text = str(folder)
    if text in sys.path:
        yield
        return
    sys.path.append(text)
    try:
        yield
    finally:
        with suppress(ValueError):
            sys.path.remove(text)
