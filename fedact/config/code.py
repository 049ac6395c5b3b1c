"""Code of the user's own: how it is named (``mine.py:build``, ``package.module:build``), loaded, and known by its digest.

Naming code runs none of it: ``is_code``, ``split_code`` and, of a file, ``code_digest`` only read. ``load_code`` runs it.
"""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from fedact.config.errors import ConfigError, nearest
from fedact.config.paths import expanded

OURS = ("timm", "hf", "clients")
"""What of fedact's own is written with a colon and a word: no modules of the user's."""
PRIVATE = "fedact_own_"
"""The names of modules made here begin so: none can hide another."""
GIVEN = f"{PRIVATE}given_"
"""The names of modules that hold what ``fedact.run`` was given and no file holds; each has its DIGEST."""
_WORD = r"[^\W\d]\w*"
_CODE = re.compile(rf"(?P<place>[^\n]+\.py|{_WORD}(?:\.{_WORD})*):(?P<name>{_WORD}(?:\.{_WORD})*)(?::(?P<settings>.*))?")


def is_code(text: str) -> bool:
    """Tell whether a text names code, ``PATH.py:NAME`` or ``package.module:NAME``, with settings behind it or without.

    A file need not be there, nor a module with a dot in its name; another module must be one that can be imported.

    >>> [text for text in ("mine.py:build", "my.nets:build", "hosvd:variance=0.8", "timm:vit", "vgg11") if is_code(text)]
    ['mine.py:build', 'my.nets:build']
    """
    match = _CODE.fullmatch(text)
    if match is None:
        return False
    place = match["place"]
    if place.endswith(".py") or place.startswith(PRIVATE):
        return True
    return place.partition(".")[0] not in OURS and ("." in place or place in sys.modules or _found(place))


def check_almost_code(text: str, flag: str) -> None:
    """Raise ConfigError for a text that is no name of fedact's, and looks like code but names none."""
    if text.endswith((".py", ".py:")):
        raise ConfigError(f"{flag} {text}: write which of its functions, as in {text.rstrip(':')}:NAME")
    match = _CODE.fullmatch(text)
    if match and match["place"] not in OURS and not match["settings"]:
        raise ConfigError(
            f"{flag} {text}: there is no module {match['place']}, nor a file {match['place']}.py that it names"
        )


def split_code(text: str) -> tuple[str, str]:
    """Return the code that a text names, and the settings behind it, "" where there are none.

    >>> split_code("mine.py:Blocks:size=4,bits=8")
    ('mine.py:Blocks', 'size=4,bits=8')
    """
    match = _CODE.fullmatch(text)
    if match is None:
        raise ConfigError(f"code is named FILE.py:NAME or package.module:NAME, not {text!r}")
    return f"{match['place']}:{match['name']}", match["settings"] or ""


def absolute_code(text: str) -> str:
    """Return the same name with the file's path in full, which every process understands."""
    code, settings = split_code(text)
    place, _, name = code.rpartition(":")
    full = str(expanded(place).absolute()) if place.endswith(".py") else place
    return ":".join(filter(None, (full, name, settings)))


def code_label(text: str) -> str:
    """Return a name without the folders of its file, as it is shown; another text as it is.

    >>> code_label("/home/me/mine.py:build"), code_label("resnet18")
    ('mine.py:build', 'resnet18')
    """
    if not is_code(text):
        return text
    if text.startswith(GIVEN):
        return text.partition(":")[2]
    place, colon, name = text.partition(".py:")
    return f"{Path(place).name}{colon}{name}"


def code_digest(text: str) -> str:
    """Return the SHA-256 of the bytes of the file that code lies in; raises ConfigError where there is none."""
    place = split_code(text)[0].rpartition(":")[0]
    if place.endswith(".py"):
        return sha256(_content(Path(place), text)).hexdigest()
    if place.startswith(GIVEN):
        return str(vars(_of_module(place, text))["DIGEST"])
    try:
        spec = find_spec(place)
    except Exception as error:  # the package around it fails, or there is none
        raise _of_import(error, place, text) from None
    if spec is None or not spec.origin or not Path(spec.origin).is_file():
        raise ConfigError(f"{text}: there is no module {place} with a file of its own")
    return sha256(Path(spec.origin).read_bytes()).hexdigest()


def check_digest(text: str, due: str) -> None:
    """Raise ConfigError where the file that code lies in is not the one with this digest."""
    _check(text, due, code_digest(text))


def _check(text: str, due: str, found: str) -> None:
    if found != due:
        raise ConfigError(
            f"{text} has changed: its file's SHA-256 was {due[:12]}, and is {found[:12]}: restore it, or start another run"
        )


def load_code(text: str, digest: str | None = None) -> Any:
    """Return what code names, running its file or importing its module, once in a process.

    digest: of its file, by default whatever it is. Raises ConfigError, in one line, where the file is missing, fails or is
    another, and where it lacks the name.

    >>> load_code("collections.abc:Mapping")
    <class 'collections.abc.Mapping'>
    """
    place, _, name = split_code(text)[0].rpartition(":")
    if place.endswith(".py"):
        found: Any = _of_file(Path(place), text, digest)
    else:
        if digest is not None:
            check_digest(text, digest)
        found = _of_module(place, text)
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


def file_being_run() -> str | None:
    """Return a file that ``load_code`` is running right now, None where there is none."""
    running = (module for name, module in list(sys.modules.items()) if name.startswith(PRIVATE))
    return next((str(module.__file__) for module in running if getattr(module, "RUNNING", False)), None)


def _of_file(file: Path, text: str, digest: str | None) -> ModuleType:
    content = _content(file, text)
    own = sha256(content).hexdigest()
    if digest is not None:
        _check(text, digest, own)
    name = f"{PRIVATE}{sha256(f'{file.absolute()} {own}'.encode()).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    module = ModuleType(name)
    module.__file__ = str(file.absolute())
    vars(module)["RUNNING"] = True
    sys.modules[name] = module
    try:
        with _importable(file.absolute().parent):
            exec(compile(content, str(file), "exec", dont_inherit=True), vars(module))  # noqa: S102  # what was asked for
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, ConfigError) or not isinstance(error, Exception | SystemExit):
            raise
        raise _failure(text, error, str(file)) from None
    del vars(module)["RUNNING"]
    return module


def _of_module(place: str, text: str) -> ModuleType:
    if place.startswith(GIVEN) and place not in sys.modules:
        raise ConfigError(f"{text.rpartition(':')[2]} is in no file: call fedact.run again with what it was given")
    try:
        return import_module(place)
    except (Exception, SystemExit) as error:
        raise _of_import(error, place, text) from None


def _of_import(error: BaseException, place: str, text: str) -> ConfigError:
    if isinstance(error, ConfigError):
        return error
    if isinstance(error, ModuleNotFoundError) and error.name and f"{place}.".startswith(f"{error.name}."):
        return ConfigError(f"{text}: there is no module {error.name}")
    return _failure(text, error)


def _content(file: Path, text: str) -> bytes:
    if not file.is_file():
        others = [other.name for other in file.absolute().parent.glob("*.py")]
        raise ConfigError(f"{text}: there is no file {file}{nearest(file.name, others)}")
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigError(f"{text}: {file} cannot be read: {error.strerror}") from None


def _failure(text: str, error: BaseException, file: str | None = None) -> ConfigError:
    """Return the error for code that failed, with the last of its own lines that it came through."""
    line = error.lineno if isinstance(error, SyntaxError) and error.filename == file else None
    step = error.__traceback__
    while step is not None and not isinstance(error, SyntaxError):
        line = step.tb_lineno if step.tb_frame.f_code.co_filename == file else line
        step = step.tb_next
    reason = " ".join(str(error).split())
    at = f", line {line}" if line else ""
    return ConfigError(f"{text} fails{at}: {type(error).__name__}{f': {reason}' if reason else ''}")


def _found(place: str) -> bool:
    with suppress(ImportError, ValueError):
        return find_spec(place) is not None
    return False


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
