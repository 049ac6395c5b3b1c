"""Tables at any width: no number is ever broken, nothing is lost, and no line is wider than it has to be."""

import re

import pytest
from rich.table import Table

from fedact.cli import console
from fedact.reports.fitted import NUMBER, fitted
from fedact.reports.run.tables import listing

METHODS = [
    "hosvd:variance=0.85", "exact", "quantize:bits=4", "transform:variance=0.95,derive=2", "checkpoint", "vanilla",
    "gradient_filter:patch=2", "hosvd:max_ranks=4x8x16x16,bits=8,truncation=sequential",
]  # fmt: skip
FIGURES = ["12.5 ± 0.4 %", "1,234,567", "256,000 to 4,000,000", "at 256,000: 33 of 52 exactly; at 4,000,000: 52 of 52"]


def methods_beside_each_other() -> Table:
    table = Table(title="What the clients learned")
    for name in ("", *METHODS):
        table.add_column(name, justify="right")
    for place in range(4):
        table.add_row(f"quantity {place}", *(FIGURES[place] for _ in METHODS))
    return table


def thirty_columns() -> Table:
    columns = ("method", *(f"features.{number}.conv" for number in range(29)))
    return listing("Layers", columns, [(name, *(f"{1234567 * place:,}" for place in range(29))) for name in METHODS])


def printed(capsys, monkeypatch, table, width: int) -> list[str]:
    monkeypatch.setenv("COLUMNS", str(width))
    console.show(table)
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("width", [20, 33, 40, 60, 80, 120])
@pytest.mark.parametrize("make", [methods_beside_each_other, thirty_columns])
def test_every_number_stands_whole_in_a_line_at_any_width(make, width, capsys, monkeypatch):
    table = make()
    lines = printed(capsys, monkeypatch, table, width)
    words = " ".join(lines).split()
    cells = [str(cell) for column in table.columns[1:] for cell in column.cells]
    for number in {word for cell in cells for word in cell.split() if NUMBER.fullmatch(word)}:
        assert words.count(number) == sum(cell.split().count(number) for cell in cells)
    assert "…" not in "".join(lines)
    if width >= 60:
        assert max(map(len, lines)) <= width


@pytest.mark.parametrize("width", [40, 80])
def test_every_name_is_there_to_the_letter_in_each_part(width):
    table = methods_beside_each_other()
    parts = fitted(table, width)
    headers = ["".join(str(column.header).split()) for part in parts for column in part.columns[1:]]
    assert headers == METHODS
    assert all(
        [str(cell).replace("\n", " ") for cell in part.columns[0].cells] == list(table.columns[0].cells) for part in parts
    )
    assert [part.title for part in parts] == [table.title, *[None] * (len(parts) - 1)]


def test_what_fits_is_one_table_and_files_are_as_wide_as_the_content(capsys, monkeypatch):
    table = thirty_columns()
    assert fitted(table, 10_000) == [table]
    monkeypatch.delenv("COLUMNS", raising=False)
    console.show(table)
    (row,) = [line for line in capsys.readouterr().out.splitlines() if "checkpoint" in line]
    assert len(re.findall(r"[\d,]{7,}", row)) == 28


def test_brackets_and_colons_are_letters(capsys, monkeypatch):
    lines = printed(capsys, monkeypatch, listing("[bold]a[/]", ("[red]x", ":cat:"), [("[/nothing]", "[b]:dog:")]), 80)
    for text in ("[bold]a[/]", "[red]x", ":cat:", "[/nothing]", "[b]:dog:"):
        assert any(text in line for line in lines)
