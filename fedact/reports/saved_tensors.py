"""In words, how a plan's tensors are saved: how many exactly, how many as factors and with which ranks."""

from collections.abc import Collection, Iterable
from itertools import groupby

from fedact.config import spec
from fedact.reports.method_label import method_label

FACTORS = ("hosvd", "tucker", "svd", "channel_svd", "asi", "lance")
"""The methods that save a core and factors; by name, for what shows a table need not load torch."""


def saved_tensors(methods: Iterable[str]) -> str:
    """Return how many of a plan's tensors are saved in which way, from the full names of their methods.

    >>> saved_tensors(["hosvd:ranks=4x40x5x5,bits=8", "hosvd:ranks=2x9x5x5,bits=8", "exact"])
    '2 of 3 as factors by hosvd (ranks 2 to 40, 8 bits), 1 of 3 exactly'
    """
    written = sorted(map(spec.split, methods), key=lambda each: each[0])
    ways = [(name, [settings for _, settings in group]) for name, group in groupby(written, key=lambda each: each[0])]
    ways.sort(key=lambda way: -len(way[1]))
    return ", ".join(f"{len(settings)} of {len(written)} {_way(name, settings)}" for name, settings in ways) or "none"


def made_again(recompute: int | None, room: int | None = None) -> str:
    """Return what of a step is made again in the backward pass; recompute: None for a plan that does not say.

    room: bytes for the wide maps of a block in streams, None where none is.

    >>> made_again(3)
    'inputs from up to 3 convolutions back'
    >>> made_again(0, room=60_000)
    'all but the inputs of blocks in streams'
    """
    if recompute is None:
        return "-"
    found = [f"inputs from up to {recompute} convolution{'s'[: recompute > 1]} back"] if recompute else []
    return "; ".join(found + ["all but the inputs of blocks in streams"] * (room is not None)) or "nothing"


def _way(name: str, settings: list[dict[str, str]]) -> str:
    """Return in which way tensors with these settings of one method are saved."""
    if name not in FACTORS:
        return "exactly" if name == "exact" else f"by {method_label(name)}"
    fixed = all("ranks" in each for each in settings)
    ranks = [int(rank) for each in settings for rank in each.get("ranks", each.get("max_ranks", "")).split("x") if rank]
    bits = {int(each["bits"]) for each in settings if "bits" in each} - {32}
    details = [f"ranks {'' if fixed else 'at most '}{_span(ranks)}"] if ranks else []
    details += [f"{_span(bits)} bits"] if bits else []
    return f"as factors by {name}" + (f" ({', '.join(details)})" if details else "")


def _span(numbers: Collection[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low}" if low == high else f"{low} to {high}"
