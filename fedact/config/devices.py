"""Boards by name: how much memory each has, what of it may go to activations, and who says so."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from fedact.config.errors import ConfigError, nearest
from fedact.config.sizes import parse_bytes
from fedact.config.toml import read_table

SHIPPED = Path(__file__).with_name("devices.toml")
"""The boards that fedact knows by itself."""
_NAME = re.compile(r"[a-z][a-z0-9_-]*")


@dataclass(frozen=True)
class Device:
    """A board: its memory and what of it may go to activations in bytes, and the vendor's words with their address."""

    memory: int
    activations: int
    source: str


def read_devices(file: Path | None = None) -> dict[str, Device]:
    """Return the devices in a TOML file, or those that ship with fedact; raises ConfigError that names the broken key."""
    where = file or SHIPPED
    return {
        name: _device(f"--devices {where}: [{name}]", name, entry) for name, entry in read_table("devices", where).items()
    }


def _device(where: str, name: str, entry: Any) -> Device:
    if not _NAME.fullmatch(name) or name == "none":
        raise ConfigError(f"{where} is no name of a device: small letters, digits and dashes, a letter first, not none")
    if not isinstance(entry, Mapping):
        raise ConfigError(f"{where} is no table with memory and source, but {entry!r}")
    allowed = [field.name for field in fields(Device)]
    for key in entry:
        if key not in allowed:
            raise ConfigError(f"{where} has an unknown key {key!r}: allowed are {', '.join(allowed)}{nearest(key, allowed)}")
    if not isinstance(source := entry.get("source"), str) or not source.strip():
        raise ConfigError(f"{where} source is missing or no text: it says who gives the memory, and where")
    memory = _bytes(where, "memory", entry.get("memory"))
    activations = _bytes(where, "activations", entry.get("activations", memory))
    if activations > memory:
        raise ConfigError(f"{where} activations is {activations:,} bytes, more than its memory of {memory:,}")
    return Device(memory, activations, source)


def _bytes(where: str, key: str, size: Any) -> int:
    try:
        return parse_bytes(size)
    except ConfigError as error:
        raise ConfigError(f"{where} {key} is {'missing' if size is None else repr(size)}: {error}") from None
