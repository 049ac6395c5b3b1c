"""Text that others wrote, made fit to be shown: no control characters, no markup, no formulas, no endless lines."""

import re
from textwrap import fill

MOST_DRAWN = 110
"""Characters of a name in a figure."""


def visible(text: object) -> str:
    r"""Return a text whose control characters, broken characters and changes of direction are escapes such as ``\x1b``."""
    plain = str(text)
    if plain.isprintable():
        return plain
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in plain)


def drawn(text: object, most: int = MOST_DRAWN) -> str:
    """Return a text as matplotlib draws it letter by letter, without its middle where it is longer than this."""
    plain, half = visible(text), most // 2
    short = plain if len(plain) <= most else f"{plain[:half]}...{plain[-half:]}"
    # Matplotlib leaves names that begin with an underscore out of legends, and reads formulas between dollars.
    return f" {short}".replace("$", r"\$") if short.startswith("_") else short.replace("$", r"\$")


def folded(text: str, letters: int) -> str:
    """Return a text in lines of so many letters, broken after spaces and commas where it has them."""
    # A tab is a place to break at, and nothing where no line ends.
    breakable = re.sub(r",(?=\S)", ",\t", text)
    return fill(breakable, letters, expand_tabs=False, replace_whitespace=False).replace("\t", "")
