"""Memory budgets: a size, none, a device's name, a mix of these with shares of the clients, or a list.

A list, ``64KB/none/512KB``, has one budget for each client, in their order.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fedact.config.devices import read_devices
from fedact.config.errors import ConfigError, nearest
from fedact.config.seeds import Purpose, generator
from fedact.config.sizes import parse_bytes

EXAMPLE = "256KB:10,512KB:6"


@dataclass(frozen=True)
class Budget:
    """The memory budgets of some clients.

    text: as it was written, with bytes in place of the names of devices; two budgets of the same sizes are equal. sizes: in
    bytes, None for no bound. shares: of the clients, one for each size; None for a list, which has one size for each client.
    """

    text: str = field(compare=False)
    sizes: tuple[int | None, ...]
    shares: tuple[float, ...] | None

    def __str__(self) -> str:
        return self.text

    def by_client(self, clients: int, seed: int) -> tuple[int | None, ...]:
        """Return each client's budget in bytes: exact counts by largest remainder, shuffled by seed; a list as it stands."""
        if self.shares is None:
            return self.sizes
        counts = largest_remainder(np.asarray(self.shares), clients)
        shuffled = np.repeat(np.arange(len(self.sizes)), counts)[generator(seed, Purpose.BUDGETS).permutation(clients)]
        return tuple(self.sizes[position] for position in shuffled)


def largest_budget(budgets: Sequence[int | None]) -> int | None:
    """Return the largest of some budgets in bytes, None where one is no bound."""
    return None if None in budgets else max(size for size in budgets if size is not None)


UNBOUNDED = Budget("none", (None,), (1.0,))


def parse_budget(text: str, devices: Path | None = None) -> Budget:
    """Return the budget behind a text; raises ConfigError for what is none, and for an unknown device.

    devices: the TOML file that knows them, by default the one that ships with fedact.
    """
    text = in_bytes(text, devices)
    if "/" in text:
        return Budget(text, tuple(_parse_size(size.strip()) for size in text.split("/")), None)
    if not text.strip():
        raise ConfigError(f"the budget is empty: write a size such as 512KB, none, a device, or a mix such as {EXAMPLE}")
    sizes, shares = [], []
    for part in text.split(","):
        size, colon, share = (word.strip() for word in part.partition(":"))
        try:
            number = float(share) if colon else 1.0
        except ValueError:
            number = -1.0
        if not (0 < number < float("inf")) or ("," in text and not colon):
            raise ConfigError(f"a mix of budgets is written size:share,size:share, such as {EXAMPLE}, not {text!r}")
        sizes.append(_parse_size(size))
        shares.append(number)
    return Budget(text, tuple(sizes), tuple(shares))


def _parse_size(text: str) -> int | None:
    return None if text.lower() == "none" else parse_bytes(text)


def size_text(size: int | None) -> str:
    """Return one budget as it is written: its bytes, or none."""
    return "none" if size is None else str(size)


def in_bytes(text: str, devices: Path | None = None) -> str:
    """Return a budget with the bytes of the devices it names in their places; one without names stays as it is.

    devices: as in ``parse_budget``. Raises ConfigError for an unknown name.
    """
    if "/" in text:
        return "/".join(in_bytes(part, devices) for part in text.split("/"))
    parts = [part.partition(":") for part in text.split(",")]
    if not any(_is_name(word) for word, _, _ in parts):
        return text
    known = {name: device.activations for name, device in read_devices(devices).items()}

    def size(word: str) -> str:
        name = word.strip().lower()
        if _is_name(word) and name not in known:
            allowed = f"{', '.join(known)}{nearest(name, known)}"
            raise ConfigError(f"{word.strip()!r} is neither a size such as 512KB nor one of the devices {allowed}")
        return str(known.get(name, word))

    return ",".join(f"{size(word)}{colon}{share.strip()}" for word, colon, share in parts)


def _is_name(word: str) -> bool:
    return word.strip()[:1].isalpha() and word.strip().lower() != "none"


def largest_remainder(shares: np.ndarray, total: int) -> np.ndarray:
    """Return whole numbers that add up to ``total`` in proportion to the shares."""
    scaled = np.asarray(shares, dtype=float) / np.max(shares)
    exact = scaled * total / scaled.sum()
    floors: np.ndarray = np.floor(exact).astype(int)
    order = np.argsort(floors - exact, kind="stable")
    floors[order[: total - floors.sum()]] += 1
    return floors
