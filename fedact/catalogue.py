"""--list: what there is to choose from, straight from the tables."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, Literal, get_args, get_origin, get_type_hints

from rich.console import Console

from fedact.compression import METHODS
from fedact.data import DATASETS
from fedact.models import MODELS
from fedact.partition import PARTITIONS
from fedact.report import listing
from fedact.spec import spelled


def show_tables() -> int:
    """Print the tables of methods, models, data sets and partitions."""
    console = Console()
    methods = [
        (name, entry.published or "-", _settings(entry), entry.source, _first_line(entry)) for name, entry in METHODS.items()
    ]
    columns = ("name", "as published", "settings", "source", "what it keeps")
    console.print(listing("Methods, written NAME:key=value,key=value", columns, methods))
    partitions = [(name, _settings(entry), _first_line(entry)) for name, entry in PARTITIONS.items()]
    console.print(listing("Partitions", ("name", "settings", "who holds what"), partitions))
    console.print(listing("Models", ("name", ""), [(name, _first_line(entry)) for name, entry in MODELS.items()]))
    data = [(name, _module_line(entry)) for name, entry in DATASETS.items()]
    console.print(listing("Data sets", ("name", ""), data))
    return 0


def _settings(entry: type) -> str:
    """Return a setting a line: its default first, then what else it may be."""
    kinds = get_type_hints(entry)
    return "\n".join(_setting(field.name, field.default, kinds[field.name]) for field in dataclasses.fields(entry)) or "none"


def _setting(name: str, default: Any, kind: Any) -> str:
    others = [choice for choice in get_args(kind) if choice != default] if get_origin(kind) is Literal else []
    return f"{name}={'|'.join(map(spelled, (default, *others)))}"


def _first_line(entry: object) -> str:
    return (inspect.getdoc(entry) or "").split("\n")[0]


def _module_line(entry: Callable[..., object]) -> str:
    return _first_line(inspect.getmodule(inspect.unwrap(getattr(entry, "func", entry))))
