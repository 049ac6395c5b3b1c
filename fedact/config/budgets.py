"""Budgets as people write them: a size, none, a device's name, a mix of these with shares of the clients, or a list.

A list, ``64KB/none/512KB``, has one budget for each client, in their order.
"""

from functools import lru_cache
from pathlib import Path

import numpy as np

from fedact.config.devices import read_devices
from fedact.config.errors import ConfigError, nearest
from fedact.config.seeds import Purpose, generator
from fedact.config.sizes import parse_bytes

EXAMPLE = "256KB:10,512KB:6"


def parse_budget(text: str) -> tuple[tuple[int | None, float], ...]:
    """Return (bytes or None for no bound, share of the clients) for each part of a budget without names."""
    if "/" in text:
        return tuple((_one(size.strip()), 1.0) for size in text.split("/"))
    if not text.strip():
        raise ConfigError(f"the budget is empty: write a size such as 512KB, none, a device, or a mix such as {EXAMPLE}")
    parts = []
    for part in text.split(","):
        size, colon, share = (word.strip() for word in part.partition(":"))
        try:
            number = float(share) if colon else 1.0
        except ValueError:
            number = -1.0
        if not (0 < number < float("inf")) or ("," in text and not colon):
            raise ConfigError(f"a mix of budgets is written size:share,size:share, such as {EXAMPLE}, not {text!r}")
        parts.append((_one(size), number))
    return tuple(parts)


def _one(size: str) -> int | None:
    return None if size.lower() == "none" else parse_bytes(size)


@lru_cache(maxsize=4)
def dealt_budgets(budget: str, clients: int, seed: int) -> tuple[int | None, ...]:
    """Return each client's budget in bytes, for a budget without names."""
    sizes, shares = zip(*parse_budget(budget), strict=True)
    if "/" in budget:
        return sizes
    counts = largest_remainder(np.asarray(shares), clients)
    dealt = np.repeat(np.arange(len(sizes)), counts)[generator(seed, Purpose.BUDGETS).permutation(clients)]
    return tuple(sizes[which] for which in dealt)


def in_bytes(text: str, devices: Path | None = None) -> str:
    """Return a budget with the bytes of the devices it names in their places; one without names stays as it is.

    devices: the file that knows them, by default the one that ships with fedact. Raises ConfigError for an unknown name.
    """
    if "/" in text:
        return "/".join(in_bytes(part, devices) for part in text.split("/"))
    parts = [part.partition(":") for part in text.split(",")]
    if not any(_is_name(word) for word, _, _ in parts):
        return text
    known = {name: device.activations for name, device in read_devices(devices).items()}
    return ",".join(f"{_size(word, known)}{colon}{share.strip()}" for word, colon, share in parts)


def _is_name(word: str) -> bool:
    return word.strip()[:1].isalpha() and word.strip().lower() != "none"


def _size(word: str, known: dict[str, int]) -> str:
    name = word.strip().lower()
    if _is_name(word) and name not in known:
        allowed = f"{', '.join(known)}{nearest(name, known)}"
        raise ConfigError(f"{word.strip()!r} is neither a size such as 512KB nor one of the devices {allowed}")
    return str(known.get(name, word))


def largest_remainder(shares: np.ndarray, total: int) -> np.ndarray:
    """Return whole numbers that add up to ``total`` in proportion to the shares."""
    scaled = np.asarray(shares, dtype=float) / np.max(shares)
    exact = scaled * total / scaled.sum()
    floors: np.ndarray = np.floor(exact).astype(int)
    order = np.argsort(floors - exact, kind="stable")
    floors[order[: total - floors.sum()]] += 1
    return floors
