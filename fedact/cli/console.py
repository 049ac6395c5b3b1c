"""Tables on a terminal, in a file or a pipe."""

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

WIDEST = 1000
"""Characters of a line in a file or a pipe."""


def show(*tables: Table) -> None:
    """Print tables to the terminal's width; in a file or a pipe they are as wide as their content."""
    console = Console()
    if not console.is_terminal:
        wide = console.options.update(width=WIDEST)
        console = Console(width=max(Measurement.get(console, wide, table).maximum for table in tables))
    for table in tables:
        console.print(table)
