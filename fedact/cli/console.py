"""Tables and words on a terminal, in a file or a pipe."""

import os
import shlex

from rich.console import Console
from rich.table import Table

from fedact.reports.fitted import fitted, natural_width

PROSE = 120
"""Characters of a line of prose in a file or a pipe."""


def letters_console(width: int | None = None) -> Console:
    """Return a console that prints texts letter by letter: what stands in brackets or between colons is no markup.

    In a notebook it prints plain lines, as into a file.
    """
    # There rich shows HTML, a cell of it a line, and the kernel says that its output were a terminal.
    terminal = False if Console().is_jupyter else None
    return Console(markup=False, emoji=False, width=width, force_jupyter=False, force_terminal=terminal)


def show(*tables: Table, prose: bool = False) -> None:
    """Print tables to the terminal's width, or $COLUMNS; else, in a file or a pipe, as wide as their content.

    A table that is wider comes in several, so that no number is broken. prose: some cells are sentences, which wrap.
    """
    console = letters_console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = PROSE if prose else max([PROSE, *map(natural_width, tables)])
    for table in tables:
        for part in fitted(table, console.width):
            # One number with its name may be wider than a very narrow terminal: that breaks its lines by itself.
            _print(part, letters_console(max(console.width, natural_width(part))))


def _print(table: Table, console: Console) -> None:
    if console.encoding.startswith("utf"):
        console.print(table)
        return
    # A letter that the output does not know is one question mark, so that columns stay below each other.
    with console.capture() as capture:
        console.print(table)
    print(capture.get().encode(console.encoding, "replace").decode(console.encoding), end="")


def shell_word(path: object) -> str:
    """Return a path as a shell reads it back, whatever letters it has.

    >>> print(shell_word("runs/a b"), shell_word("runs/1"), shell_word("a'\\n"))
    'runs/a b' runs/1 $'a\\'\\x0a'
    """
    text = str(path)
    if text.isprintable():
        return shlex.quote(text)
    return "$'" + "".join(map(_as_bytes, text)) + "'"


def _as_bytes(letter: str) -> str:
    if letter.isprintable():
        return f"\\{letter}" if letter in "\\'" else letter
    return "".join(f"\\x{byte:02x}" for byte in os.fsencode(letter))
