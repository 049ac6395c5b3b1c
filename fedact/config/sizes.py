"""Bytes as people write them: 512KB is 512,000, 512KiB is 524,288."""

import re
from decimal import Decimal

from fedact.config.errors import ConfigError

UNITS = {
    "": 1, "B": 1,
    "KB": 10**3, "MB": 10**6, "GB": 10**9,
    "KIB": 2**10, "MIB": 2**20, "GIB": 2**30,
}  # fmt: skip
LARGEST = 2**63 - 1
_SIZE = re.compile(r"\s*(\d+(?:[_,]\d{3})*(?:\.\d+)?)\s*([A-Za-z]*)\s*")


def parse_bytes(text: str | int) -> int:
    """Return the bytes that a size such as ``512KB`` or a plain integer names.

    Raises ConfigError for anything that is not a positive whole number of bytes.
    """
    if isinstance(text, bool) or not isinstance(text, str | int):
        raise ConfigError(f"a size is a text such as 512KB or a whole number of bytes, not {text!r}")
    match = _SIZE.fullmatch(str(text))
    if match is None or match[2].upper() not in UNITS:
        raise ConfigError(f"not a size: {text!r}; write a positive number and B, KB, MB, GB, KiB, MiB or GiB, such as 512KB")
    size = Decimal(re.sub("[_,]", "", match[1])) * UNITS[match[2].upper()]
    if not 1 <= size <= LARGEST or size != int(size):
        raise ConfigError(f"a size is a positive whole number of bytes below 2^63, not {text!r}")
    return int(size)


def format_bytes(size: int | float | None) -> str:
    """Return bytes with thousands separators, ``-`` where nothing was measured."""
    return "-" if size is None else f"{int(size):,}"
