"""--list: what there is to choose from, straight from the tables."""

import dataclasses
import inspect

from rich.console import Console

from fedact.compression import METHODS
from fedact.data import DATASETS
from fedact.models import MODELS
from fedact.partition import PARTITIONS
from fedact.report import listing


def show_tables() -> int:
    """Print the tables of methods, models, data sets and partitions."""
    console = Console()
    methods = [(name, _settings(entry), entry.source, _first_line(entry)) for name, entry in METHODS.items()]
    console.print(listing("Methods", ("name", "settings", "source", "what it keeps"), methods))
    partitions = [(name, _settings(entry), _first_line(entry)) for name, entry in PARTITIONS.items()]
    console.print(listing("Partitions", ("name", "settings", "who holds what"), partitions))
    console.print(listing("Models", ("name", ""), [(name, _first_line(entry)) for name, entry in MODELS.items()]))
    data = [(name, _first_line(inspect.getmodule(entry) or entry)) for name, entry in DATASETS.items()]
    console.print(listing("Data sets", ("name", ""), data))
    return 0


def _settings(entry: type) -> str:
    fields = dataclasses.fields(entry)
    return ", ".join(f"{field.name}={'-' if field.default is None else field.default}" for field in fields) or "none"


def _first_line(entry: object) -> str:
    return (inspect.getdoc(entry) or "").split("\n")[0]
