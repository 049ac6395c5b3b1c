"""A comparison in the terminal: read the runs, print the tables, write the figures, the CSV file and the report."""

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from fedact.cli.console import show
from fedact.cli.signals import catch_late
from fedact.config.errors import ConfigError
from fedact.reports.comparison.cases import Case, Comparison, compare_runs
from fedact.reports.comparison.figures import FIGURES, class_iou, forgetting_by_round
from fedact.reports.comparison.html import html_report
from fedact.reports.comparison.layer_figure import memory_by_layer
from fedact.reports.comparison.statistics import Figures, figures_of, target_accuracy
from fedact.reports.comparison.tables import as_csv, tables
from fedact.reports.safe_text import escaped
from fedact.reports.style import png
from fedact.storage.disk import make_folder, write_whole

BAD_INPUT = 2
FIGURES_OF_SOME: dict[str, Callable[[Sequence[Case]], Figure | None]] = {
    "class-iou": class_iou,
    "forgetting-by-round": forgetting_by_round,
    "memory-by-layer": memory_by_layer,
}
"""Figures that not every run has."""


def run_compare(paths: Sequence[Path], out: Path | None, target: float | None, replication: bool = False) -> int:
    """Compare runs and return the exit code: 2 where one of them could not be read, though the rest was compared.

    out: the folder of what is written, by default the first run's. target: the score that "rounds to" asks for.
    replication: also print the columns of the paper's replication.
    Raises ConfigError where no run could be read, or the folder cannot be written to.
    """
    catch_late()
    comparison = compare_runs(paths)
    if not comparison.cases:
        raise ConfigError("; ".join(comparison.refused))
    target = target_accuracy(comparison.cases) if target is None else target
    figures = [figures_of(case, target) for case in comparison.cases]
    _print(comparison, figures, target, replication)
    folder = out or comparison.runs[0].path
    make_folder(folder)
    drawn = {name: draw(comparison.cases) for name, draw in {**FIGURES, **FIGURES_OF_SOME}.items()}
    pictures = {name: png(figure) for name, figure in drawn.items() if figure is not None}
    command = shlex.join(["python", "-m", "fedact.compare", *sys.argv[1:]])
    files: dict[str, str | bytes] = {f"compare-{name}.png": content for name, content in pictures.items()}
    files["comparison.csv"] = as_csv(figures)
    files["report.html"] = html_report(comparison, figures, target, pictures, command)
    _write(folder, files)
    print(escaped(f"report.html, comparison.csv and {len(pictures)} figures are in {folder}"))
    return BAD_INPUT if comparison.refused else 0


def _write(folder: Path, files: Mapping[str, str | bytes]) -> None:
    """Write the files, or raise ConfigError; nothing is written where a folder has the name of one."""
    if taken := [name for name in files if (folder / name).is_dir()]:
        raise ConfigError(f"{folder / taken[0]} is a folder: a file is to be written there")
    try:
        for name, content in files.items():
            write_whole(folder / name, content)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written to: {error.strerror}") from None


def _print(comparison: Comparison, figures: Sequence[Figures], target: float, replication: bool) -> None:
    show(*tables(figures, target, replication, comparison.score_name))
    for run, settings in comparison.differing.items():
        print(escaped(f"{run}: {', '.join(f'{name} {value}' for name, value in settings.items())}"))
    if names := comparison.incomparable():
        print(f"These runs differ in {', '.join(names)}: their scores are not of the same thing.")
    for line in comparison.notes:
        print(escaped(f"note: {line}"))
    for line in comparison.refused:
        print(escaped(f"fedact: left out: {' '.join(line.split())}"), file=sys.stderr)
