"""The comparison's tables: columns, their texts and meanings, and the CSV file."""

import csv
from collections.abc import Callable, Sequence
from io import StringIO

from rich.table import Table
from rich.text import Text

from fedact.config.sizes import format_bytes
from fedact.reports.comparison.statistics import Figures
from fedact.reports.run.scores import points
from fedact.reports.run.tables import listing
from fedact.reports.safe_text import escaped
from fedact.storage.rows import SCORE_NAMES

Cell = Callable[[Figures], str]
BYTES_PER_MB = 1e6


def percent(share: float | None) -> str:
    """Return a share as it stands in a table."""
    return "-" if share is None else f"{100 * share:.1f} %"


def accuracy(figures: Figures) -> str:
    """Return the final accuracy, with the standard deviation over seeds where there are several."""
    spread = figures["accuracy_std"]
    return percent(figures["accuracy"]) if spread is None else f"{100 * figures['accuracy']:.1f} ± {100 * spread:.1f} %"


def _bytes(name: str) -> Cell:
    return lambda figures: format_bytes(figures[name])


def _number(name: str, form: str) -> Cell:
    return lambda figures: "-" if figures[name] is None else format(figures[name], form)


def _megabytes(name: str) -> Cell:
    return lambda figures: "-" if figures[name] is None else f"{figures[name] / BYTES_PER_MB:,.3f}"


LEARNING: dict[str, Cell] = {
    "method": lambda figures: str(figures["case"]),
    "accuracy": accuracy,
    "standard error": lambda figures: percent(figures["accuracy_standard_error"]),
    "before": lambda figures: percent(figures["accuracy_before"]),
    "best": lambda figures: percent(figures["accuracy_best"]),
    "clients' classes": lambda figures: percent(figures["client_accuracy"]),
    "forgotten": lambda figures: points(figures["forgotten"]),
    "mean client": lambda figures: percent(figures["mean_client_accuracy"]),
    "worst client": lambda figures: percent(figures["worst_client_accuracy"]),
    "held-out clients": lambda figures: percent(figures["held_out_client_accuracy"]),
    "worst of these": lambda figures: percent(figures["worst_held_out_client_accuracy"]),
    "rounds to target": lambda figures: (
        f"not in {figures['rounds']}" if figures["rounds_to_target"] is None else f"{figures['rounds_to_target']:.3g}"
    ),
    "loss": _number("loss", ".3f"),
    "test examples": _number("test_examples", ",d"),
    "seeds": _number("seeds", "d"),
    "rounds": _number("rounds", "d"),
    "clients x rounds": lambda figures: str(figures["client_rows"]),
}
COSTS: dict[str, Cell] = {
    "method": lambda figures: str(figures["case"]),
    "peak bytes": _bytes("peak_bytes"),
    "x floor": _number("times_floor", ".2f"),
    "saved bytes": _bytes("saved_bytes"),
    "less than vanilla": lambda figures: (
        "-" if figures["times_less_than_vanilla"] is None else f"{figures['times_less_than_vanilla']:.1f}x"
    ),
    "device bytes": _bytes("device_bytes"),
    "floor bytes": _bytes("floor_bytes"),
    "paper bytes": _bytes("paper_bytes"),
    "budget held": lambda figures: str(figures["budget_held"]),
    "layers": _number("trained_layers", "d"),
    "micro-batch": _number("micro_batch", "d"),
    "recompute": _number("recompute", "d"),
    "bytes sent": _bytes("upload_bytes"),
    "GFLOP a batch": lambda figures: (
        "-" if figures["flops_ratio"] is None else f"{figures['step_flops'] / 1e9:.3g} ({figures['flops_ratio']:.2f}x)"
    ),
    "seconds": _number("seconds", ".0f"),
}
TABLES = {"What was learned": LEARNING, "What it took (the largest client)": COSTS}
"""The tables by title: a cell for each column."""
REPLICATION: dict[str, Cell] = {
    "method": lambda figures: str(figures["case"]),
    "layers": _number("trained_layers", "d"),
    "accuracy": accuracy,
    "peak MB": _megabytes("paper_bytes"),
    "mean": _megabytes("paper_bytes_mean"),
    "std": _megabytes("paper_bytes_std"),
    "total an epoch": _megabytes("paper_bytes_an_epoch"),
    "held: peak MB": _megabytes("saved_bytes"),
    "held: mean": _megabytes("saved_bytes_mean"),
    "held: std": _megabytes("saved_bytes_std"),
    "alive: peak MB": _megabytes("peak_bytes"),
    "seconds an epoch": _number("seconds_an_epoch", ".1f"),
}
REPLICATION_TITLE = (
    "As the replication reports it (compressed inputs of the trained convolutions alone), and what is really held"
)
"""Columns of the paper's independent replication by its definitions, and all bytes beside them."""
HOW_TO_READ = {
    "accuracy": "of the global model on the whole test set at the end; mean and sample standard deviation over seeds",
    "local:, central:": "each client alone, accuracy the mean over their own models; all examples in one place, one model",
    "standard error": "of accuracy, binomial: what another draw of as many test examples would change; none for a mean IoU",
    "clients' classes": "accuracy on the classes that clients hold, in the clients' proportions",
    "forgotten": "the fall of accuracy since round 0, in points, on test examples of classes that no client holds",
    "mean client": "the clients' models, each on its own held-out examples after its last training",
    "worst client": "the worst client's model on its own held-out examples after its last training",
    "held-out clients": "accuracy of the global model at the end on all examples of clients that took no part in training",
    "rounds to target": "the first round whose accuracy reaches the target, mean over seeds",
    "peak bytes": "peak activation memory: the most alive at any moment above weights, gradients, optimizer and images",
    "x floor": "peak bytes over floor bytes: the largest input and output of any one layer, one image",
    "saved bytes": "of these the most that a step of any client held between operations for its backward pass",
    "less than vanilla": "what plain training of the same layers on a whole batch keeps, over saved bytes",
    "device bytes": "peak bytes with trained weights, gradients, optimizer state, copies and a micro-batch's images",
    "paper bytes": "the papers' figure: 4 bytes x stored elements of trained layers' inputs, nothing else",
    "recompute": "how many convolutions back inputs were made again from instead of saved, 0 for none: compare at the same",
    "bytes sent": "by all clients in all rounds, mean over seeds",
    "GFLOP a batch": "forward and backward from the first trained layer on, decompositions included; relative to vanilla",
    "peak MB, mean, std": "paper bytes over the steps of all clients; an epoch's steps added up are its total",
    "held, alive": "the same for saved bytes, and the largest peak bytes",
    "seconds": "of all rounds on this machine, mean over seeds; other machines and loads give others",
}
"""Meanings of columns whose names do not say them."""
OF_MEAN_IOU = "intersection over union of a class's pixels as they are and as predicted, the mean over classes; "


OF_SOME = ("mean client", "held-out clients", "worst of these")
"""Columns that are left out where no case has them."""


def all_tables(replication: bool, cases: Sequence[Figures]) -> dict[str, dict[str, Cell]]:
    """Return the tables by title, with the replication's where it is wanted, of columns that some case fills."""
    wanted = TABLES | ({REPLICATION_TITLE: REPLICATION} if replication else {})

    def filled(name: str, cell: Cell) -> bool:
        return name not in OF_SOME or any(cell(figures) != "-" for figures in cases)

    return {title: {name: cell for name, cell in columns.items() if filled(name, cell)} for title, columns in wanted.items()}


def column_title(column: str, target: float, score: str) -> str:
    """Return a column's title: the score by its name, and the target that was asked for."""
    return column.replace("target", percent(target)).replace("accuracy", score)


def how_to_read(score: str) -> dict[str, str]:
    """Return the meaning of each column, with the score by its name."""
    iou = {"accuracy": OF_MEAN_IOU + HOW_TO_READ["accuracy"]} if score == SCORE_NAMES["segmentation"] else {}
    return {name.replace("accuracy", score): text.replace("accuracy", score) for name, text in (HOW_TO_READ | iou).items()}


def tables(cases: Sequence[Figures], target: float, replication: bool = False, score: str = "accuracy") -> list[Table]:
    """Return the comparison as tables for a terminal; score: the name of the runs' score."""
    result = []
    for title, columns in all_tables(replication, cases).items():
        # A Text is taken letter by letter: a name may hold what rich reads as markup.
        rows = [tuple(Text(escaped(cell(figures))) for cell in columns.values()) for figures in cases]
        named = tuple(column_title(name, target, score) for name in columns)
        table = listing(title, named, rows)
        for column in table.columns[1:]:
            column.justify = "right"
        result.append(table)
    return result


def as_csv(cases: Sequence[Figures]) -> str:
    """Return every figure, unrounded, a line a case."""
    text = StringIO()
    writer = csv.DictWriter(text, list(cases[0]), lineterminator="\n")
    writer.writeheader()
    for figures in cases:
        writer.writerow({name: escaped(value) if isinstance(value, str) else value for name, value in figures.items()})
    return text.getvalue()
