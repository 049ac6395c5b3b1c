"""A comparison in the terminal: read the runs, print the tables, write the figures, the CSV file and the report."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from fedact.bench_session import show
from fedact.case_figures import Figures, figures_of, target_accuracy
from fedact.compare_plots import FIGURES
from fedact.compare_table import as_csv, tables
from fedact.comparison import Case, Comparison, compare_runs
from fedact.disk import make_folder, write_whole
from fedact.errors import ConfigError
from fedact.html_report import html_report
from fedact.layer_plots import memory_by_layer
from fedact.plots import png
from fedact.shown import visible

BAD_INPUT = 2


def run_compare(paths: Sequence[Path], out: Path | None, target: float | None, replication: bool = False) -> int:
    """Compare runs and return the exit code: 2 where one of them could not be read, though the rest was compared.

    out: the folder of what is written, by default the first run's. target: the accuracy that "rounds to" asks for.
    replication: also print the columns of the paper's replication.
    Raises ConfigError where no run could be read, or the folder cannot be written to.
    """
    comparison = compare_runs(paths)
    if not comparison.cases:
        raise ConfigError("; ".join(comparison.refused))
    wanted = target_accuracy(comparison.cases) if target is None else target
    found = [figures_of(case, wanted) for case in comparison.cases]
    _tell(comparison, found, wanted, replication)
    folder = out or comparison.runs[0].path
    make_folder(folder)
    pictures = {name: png(figure) for name, figure in _figures(comparison.cases).items()}
    for name, content in pictures.items():
        write_whole(folder / f"compare-{name}.png", content)
    write_whole(folder / "comparison.csv", as_csv(found))
    command = shlex.join(["python", "-m", "fedact.compare", *sys.argv[1:]])
    write_whole(folder / "report.html", html_report(comparison, found, wanted, pictures, command))
    print(visible(f"report.html, comparison.csv and {len(pictures)} figures are in {folder}"))
    return BAD_INPUT if comparison.refused else 0


def _figures(cases: Sequence[Case]) -> dict[str, Figure]:
    figures = {name: draw(cases) for name, draw in FIGURES.items()}
    layers = memory_by_layer(cases)
    return figures | ({"memory-by-layer": layers} if layers else {})


def _tell(comparison: Comparison, found: Sequence[Figures], target: float, replication: bool) -> None:
    show(*tables(found, target, replication))
    for run, settings in comparison.differing.items():
        print(visible(f"{run}: {', '.join(f'{name} {value}' for name, value in settings.items())}"))
    if names := comparison.not_the_same():
        print(f"These runs differ in {', '.join(names)}: their accuracies are not of the same thing.")
    for line in comparison.notes:
        print(visible(f"note: {line}"))
    for line in comparison.refused:
        print(visible(f"fedact: left out: {' '.join(line.split())}"), file=sys.stderr)
