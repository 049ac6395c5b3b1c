"""Text that others wrote, made fit to be shown: no control characters, no markup, no formulas, no endless lines."""

MOST_DRAWN = 110
"""Characters of a name in a figure."""


def visible(text: object) -> str:
    r"""Return a text whose control characters, broken characters and changes of direction are escapes such as ``\x1b``."""
    plain = str(text)
    if plain.isprintable():
        return plain
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in plain)


def drawn(text: object) -> str:
    """Return a text as matplotlib draws it letter by letter, without its middle where it is long."""
    plain, half = visible(text), MOST_DRAWN // 2
    short = plain if len(plain) <= MOST_DRAWN else f"{plain[:half]}...{plain[-half:]}"
    # Matplotlib leaves names that begin with an underscore out of legends, and reads formulas between dollars.
    return f" {short}".replace("$", r"\$") if short.startswith("_") else short.replace("$", r"\$")
