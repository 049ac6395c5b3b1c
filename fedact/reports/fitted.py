"""Tables that fit into a width: what is too wide comes in several tables, and no number is broken."""

import re
from collections.abc import Sequence
from copy import copy

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from fedact.reports.safe_text import wrapped

FRAME = 3
"""Characters beside a cell: spaces and a line."""
FOLDED = 24
"""A name of more letters may be broken."""
SHORT = 14
"""A number with its unit, or a spread, of no more letters stays whole."""
NUMBER = re.compile(r"[(±<>~-]*\d[\d.,x:/%±e+-]*[)%;,x]*")


def natural_width(table: Table) -> int:
    """Return the characters of a line of the table where nothing wraps."""
    longest = (max(map(_longest_line, texts)) for texts in _texts(table))
    return 1 + sum(FRAME + (column.width or letters) for column, letters in zip(table.columns, longest, strict=True))


def fitted(table: Table, width: int) -> list[Table]:
    """Return a table as one or several of this width, each with the first column.

    Columns are as wide as their longest number or word at least: a table whose first two need more is wider.
    """
    texts = _texts(table)
    longest = [max(map(_longest_line, column)) for column in texts]
    if 1 + sum(letters + FRAME for letters in longest) <= width:
        return [table]
    least = [
        whole if column.no_wrap and 2 * whole <= width else max(map(_longest_word, cells))
        for column, cells, whole in zip(table.columns, texts, longest, strict=True)
    ]
    # Names in one word a line are hard to read: they may have a quarter of the width.
    least[0] = max(least[0], min(longest[0], width // 4))
    blocks: list[list[int]] = [[]]
    for place in range(1, len(least)):
        if blocks[-1] and 1 + sum(least[each] + FRAME for each in (0, *blocks[-1], place)) > width:
            blocks.append([])
        blocks[-1].append(place)
    return [_block(table, texts, [0, *block], least, longest, width, not number) for number, block in enumerate(blocks)]


def _block(
    table: Table, texts: list[list[str]], places: list[int], least: list[int], longest: list[int], width: int, first: bool
) -> Table:
    """Return the table of some columns; first: it has the title."""
    widths = _shared([least[place] for place in places], [longest[place] for place in places], width - 1)
    block = copy(table)
    block.title, block.columns, block.rows = table.title if first else None, [], []
    for place, letters in zip(places, widths, strict=True):
        block.add_column(_folded(texts[place][0], letters), justify=table.columns[place].justify, width=letters)
    for number, row in enumerate(table.rows, start=1):
        cells = (Text(_folded(texts[place][number], letters)) for place, letters in zip(places, widths, strict=True))
        block.add_row(*cells, end_section=row.end_section)
    return block


def _shared(least: Sequence[int], longest: Sequence[int], room: int) -> list[int]:
    """Return a width for each column, with what is left of the room for those that could use it, the modest ones first."""
    widths, left = list(least), room - sum(letters + FRAME for letters in least)
    order = sorted(range(len(least)), key=lambda place: longest[place] - least[place])
    for number, place in enumerate(order):
        more = max(0, min(longest[place] - least[place], left // (len(order) - number)))
        widths[place] += more
        left -= more
    return widths


def _texts(table: Table) -> list[list[str]]:
    """Return the texts of each column, its header first."""
    return [[str(column.header), *map(str, column.cells)] for column in table.columns]


def _longest_line(text: str) -> int:
    return max(map(cell_len, text.split("\n")))


def _longest_word(text: str) -> int:
    return max((_least(word) for line in text.split("\n") for word in _words(line)), default=1)


def _words(line: str) -> list[str]:
    """Return what of a line may not be broken: its words; all of a short one that begins with a number is one."""
    return [line] if len(line) <= SHORT and line[:1].isdigit() else line.split()


def _least(word: str) -> int:
    return cell_len(word) if NUMBER.fullmatch(word) else min(cell_len(word), FOLDED)


def _folded(text: str, letters: int) -> str:
    """Return a text in lines of so many letters, names broken after commas where they have some."""
    return "\n".join(wrapped(line, letters) if cell_len(line) > letters else line for line in text.split("\n"))
