"""Untrusted text, escaped: no control characters, no markup, no formulas, no endless lines."""

import re
import unicodedata
from functools import cache
from itertools import groupby
from textwrap import fill

LABEL_LETTERS = 110
"""Characters of a name in a figure."""


def escaped(text: object) -> str:
    r"""Return a text with control characters, broken characters and changes of direction as escapes such as ``\x1b``."""
    plain = str(text)
    if plain.isprintable():
        return plain
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in plain)


def figure_label(text: object, most: int = LABEL_LETTERS) -> str:
    """Return an escaped text that matplotlib draws letter by letter; one of more letters than this loses its middle.

    Letters that its font lacks are there as numbers, pictures as their names.
    """
    plain, half = drawable(escaped(text)), most // 2
    short = plain if len(plain) <= most else f"{plain[:half]}...{plain[-half:]}"
    # Matplotlib leaves names that begin with an underscore out of legends, and reads formulas between dollars.
    return f" {short}".replace("$", r"\$") if short.startswith("_") else short.replace("$", r"\$")


def drawable(text: str) -> str:
    """Return a text without letters that matplotlib's font lacks: ``<U+732B U+72AC>`` or ``<fox face>`` in their place."""
    if text.isascii():
        return text
    known, parts = _letters_of_font(), []
    for lacking, letters in groupby(text, key=lambda letter: ord(letter) not in known):
        run = "".join(letters)
        parts.append(f"<{' '.join(filter(None, map(_name_of, run)))}>" if lacking else run)
    return "".join(parts).replace("<>", "")


def _name_of(letter: str) -> str:
    """Return a picture's name, another letter's number, and nothing for what only changes the letter before."""
    if unicodedata.category(letter) in ("Mn", "Me", "Cf", "Sk"):
        return ""
    name = unicodedata.name(letter, "").lower() if unicodedata.category(letter) == "So" else ""
    return name or f"U+{ord(letter):04X}"


@cache
def _letters_of_font() -> frozenset[int]:
    # What only prints tables does without matplotlib.
    from matplotlib.font_manager import FontProperties, findfont, get_font

    return frozenset(get_font(findfont(FontProperties())).get_charmap())


def wrapped(text: str, letters: int) -> str:
    """Return a text in lines of so many letters, broken after spaces and commas where it has them, but not in a number."""
    # A tab is a place to break at, and nothing where no line ends.
    breakable = re.sub(r"(?<!\d),(?=\S)|,(?=[^\s\d])", ",\t", text)
    return fill(breakable, letters, expand_tabs=False, replace_whitespace=False).replace("\t", "")
