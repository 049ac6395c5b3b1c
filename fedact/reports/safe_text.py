"""Untrusted text, escaped: no control characters, no markup, no formulas, no endless lines."""

import re
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
    """Return an escaped text that matplotlib draws letter by letter; one of more letters than this loses its middle."""
    plain, half = escaped(text), most // 2
    short = plain if len(plain) <= most else f"{plain[:half]}...{plain[-half:]}"
    # Matplotlib leaves names that begin with an underscore out of legends, and reads formulas between dollars.
    return f" {short}".replace("$", r"\$") if short.startswith("_") else short.replace("$", r"\$")


def wrapped(text: str, letters: int) -> str:
    """Return a text in lines of so many letters, broken after spaces and commas where it has them, but not in a number."""
    # A tab is a place to break at, and nothing where no line ends.
    breakable = re.sub(r"(?<!\d),(?=\S)|,(?=[^\s\d])", ",\t", text)
    return fill(breakable, letters, expand_tabs=False, replace_whitespace=False).replace("\t", "")
