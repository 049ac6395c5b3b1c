"""--list: every method, partition, strategy, model, data set and device, from the tables in code."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from fedact.cli.console import show
from fedact.compression import AUTO, METHODS, Method, installed_class, installed_names
from fedact.config.devices import Device, read_devices
from fedact.config.errors import ConfigError
from fedact.config.faults import Faults
from fedact.config.natural import NATURAL, NaturalClients
from fedact.config.privacy import PRIVACY
from fedact.config.sizes import format_bytes
from fedact.config.spec import settings_of, spelled
from fedact.config.strategies import STRATEGIES
from fedact.config.updates import UPDATES
from fedact.data import DATASETS, SEGMENTATION_DATASETS
from fedact.data.partition import PARTITIONS
from fedact.models import MODELS, SEGMENTERS, SERIES_MODELS, other_classifiers
from fedact.reports.run.tables import listing

OWN_DATA = (
    (
        "hf:NAME, hf:FOLDER, hf:FILE.parquet",
        "a data set of Hugging Face, with the extra hub; settings behind it: label=COLUMN,...",
    ),
    ("FILE.py:NAME", "data of your own, by a function that returns what is trained and what is tested on"),
)


def show_tables(devices: str | None = None) -> int:
    """Print the tables of --list; devices is the file of --devices, if any.

    Raises ConfigError where that is broken.
    """
    boards = read_devices(Path(devices) if devices else None)
    methods = [(name, _method(name, entry)) for name, entry in METHODS.items()]
    methods.append((AUTO, "Mixes exact, quantize and transform, tensor by tensor, for the least gradient error."))
    methods += [(name, _installed(name, package)) for name, package in installed_names().items()]
    title = "Methods, written NAME:key=value,key=value (the default first, - is not set)"
    show(listing(title, ("name", "what it keeps"), methods, lines=True), prose=True)
    dealt: dict[str, type] = {**PARTITIONS, NATURAL: NaturalClients}
    partitions = [(name, _settings(entry), _first_line(entry)) for name, entry in dealt.items()]
    show(listing("Partitions", ("name", "settings", "who holds what"), partitions), prose=True)
    tables: tuple[tuple[str, Mapping[str, Any]], ...] = (
        ("Updates: what of the trained layers is trained", UPDATES),
        ("Strategies: what the server makes of updates", STRATEGIES),
        ("Privacy of an update", PRIVACY),
    )
    for title, table in tables:
        rules = [
            (name, f"{_first_line(entry)}\nSettings: {_settings(entry)}\nSource: {entry.source}")
            for name, entry in table.items()
        ]
        show(listing(title, ("name", "what it does"), rules, lines=True), prose=True)
    show(listing("Faults", ("settings", ""), [(_settings(Faults), _first_line(Faults))]), prose=True)
    models = [(name, _first_line(entry)) for name, entry in (MODELS | SERIES_MODELS).items()]
    named = [
        ("torchvision's", f"by name: {', '.join(other_classifiers())}"),
        ("timm:NAME", "any network of timm, with the extra timm: timm:deit_tiny_patch16_224"),
        ("FILE.py:NAME", "a network of your own, by a function of the number of classes that returns it"),
        ("with --task segmentation", ", ".join(SEGMENTERS)),
    ]
    show(listing("Models", ("name", ""), [*models, *named]), prose=True)
    for title, sets in (("Data sets", DATASETS), ("Data sets of --task segmentation", SEGMENTATION_DATASETS)):
        readers = {name: inspect.unwrap(getattr(entry, "func", entry)) for name, entry in sets.items()}
        names: dict[str, list[str]] = {}
        for name, reader in readers.items():
            names.setdefault(_first_line(inspect.getmodule(reader)), []).append(name)
        rows = [(", ".join(same), text) for text, same in names.items()]
        show(listing(title, ("name", ""), rows if sets is SEGMENTATION_DATASETS else [*rows, *OWN_DATA]), prose=True)
    known = [(name, f"{_bytes_of(device)}\n{device.source}") for name, device in boards.items()]
    columns = ("name", "bytes of memory, and where the figure is from")
    show(listing("Devices, for --budget", columns, known, lines=True), prose=True)
    return 0


def _method(name: str, entry: type[Method]) -> str:
    traits = entry.traits
    compared = f"\nWhere methods are compared: {name}:{traits.published}" if traits.published else ""
    return f"{_first_line(entry)}\nSettings: {_settings(entry)}{compared}\nSource: {traits.source}"


def _installed(name: str, package: str) -> str:
    """Return what is said of a method that an installed package brings, which may fail to load."""
    if name in (AUTO, *METHODS):
        return f"Refused: {package} brings it, and one of fedact's own has that name."
    try:
        entry = installed_class(name)
        assert entry is not None
        return f"{_method(name, entry)}\nFrom {package}"
    except ConfigError as error:
        return f"Refused: {error}"


def _bytes_of(device: Device) -> str:
    part = f", of which {format_bytes(device.activations)} for activations" if device.activations != device.memory else ""
    return f"{format_bytes(device.memory)}{part}"


def _settings(entry: type) -> str:
    """Return the settings of a table's entry with their default and, after bars, what else is allowed."""
    kinds, texts = get_type_hints(entry), []
    for field in settings_of(entry):
        kind = kinds[field.name]
        others = [choice for choice in get_args(kind) if choice != field.default] if get_origin(kind) is Literal else []
        texts.append(f"{field.name}={'|'.join(map(spelled, (field.default, *others)))}")
    return ", ".join(texts) or "none"


def _first_line(entry: object) -> str:
    return (inspect.getdoc(entry) or "").split("\n")[0]
