"""Code of the user's own, by its name: ``mine.py:build``, ``package.module:build``. Naming code runs none of it.

``code_digests`` says what it is known by, ``code_loading`` runs it.
"""

import re
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from fedact.config.errors import ConfigError
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


def names_code(text: str) -> bool:
    """Tell whether a text is written as a name of code is, whatever modules there are: with a name behind its place."""
    return _CODE.fullmatch(text) is not None


def place_of(text: str) -> str:
    """Return the file or the module that code lies in.

    >>> place_of("mine.py:Blocks:size=4"), place_of("package.module:build")
    ('mine.py', 'package.module')
    """
    return split_code(text)[0].rpartition(":")[0]


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


def _found(place: str) -> bool:
    with suppress(ImportError, ValueError):
        return find_spec(place) is not None
    return False
