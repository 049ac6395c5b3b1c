"""ConfigError, the one error a user can cause, and its sentences; errors of clients and budgets."""

from collections.abc import Iterable
from difflib import SequenceMatcher
from importlib.util import find_spec

MOST_SHOWN = 200
"""Characters of a value that is wrong."""
CLOSE, SAME_START = 0.5, 0.8
"""The least share of letters in common (see ``difflib``) of words that may be meant, and of beginnings that may."""


class ConfigError(ValueError):
    """Bad input: one line that says what is wrong, what was given and what is allowed.

    >>> import fedact
    >>> fedact.compression.METHODS["hosvd"](variance=2)
    Traceback (most recent call last):
    fedact.config.errors.ConfigError: hosvd: variance is above 0 and at most 1, not 2
    """


class BudgetError(RuntimeError):
    """A measured step held more bytes than its budget allows."""


class NoReply(Exception):
    """A client without a valid reply: the reason, and the traceback of its exception if there was one."""

    def __init__(self, reason: str, traceback: str | None = None) -> None:
        super().__init__(reason)
        self.traceback = traceback


class BadReply(NoReply):
    """A reply that must not reach the model."""


def shortened(value: object) -> str:
    """Return a value as it is shown in an error: in one line, without the end of a long one."""
    text = " ".join(repr(value).split())
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


def as_flag(name: str) -> str:
    """Return a setting as it is written on the command line."""
    return f"--{name.replace('_', '-')}"


def nearest(given: str, allowed: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?`` for the closest allowed word, the shortest of several, or nothing.

    A word is as close as it is as a whole, or as its beginning is, as long as the given one: long names are cut short.

    >>> nearest("vit_tny", ["gcvit_tiny", "vit_tiny_patch16_224", "vit_tiny_r_s16_p8_224"])
    "; did you mean 'vit_tiny_patch16_224'?"
    """

    def closeness(word: str) -> float:
        whole, start = (SequenceMatcher(None, part, given).ratio() for part in (word, word[: len(given) + 1]))
        return max(whole, start if start >= SAME_START else 0.0)

    best = max(sorted(allowed, key=lambda word: (len(word), word)), key=closeness, default="")
    return f"; did you mean {best!r}?" if best and closeness(best) >= CLOSE else ""


def unknown(kind: str, given: str, allowed: Iterable[str]) -> ConfigError:
    """Return the error for a word that is in no table."""
    names = sorted(allowed)
    return ConfigError(f"unknown {kind} {given!r}: allowed are {', '.join(names)}{nearest(given, names)}")


EXTRAS = {
    "ray": ("ray",),
    "tensorboard": ("tensorboard",),
    "hub": ("datasets",),
    "timm": ("timm",),
    "laws": ("hypothesis",),
    "segmentation": ("segmentation_models_pytorch", "torchmetrics"),
}
"""The packages that each extra brings, as they are imported."""


def check_extra(extra: str, wanted_by: str) -> None:
    """Raise ConfigError where a package of an extra is not installed.

    wanted_by: what cannot do without it, as the error names it.
    """
    # A folder of that name, with no package in it, has no origin.
    if not all((found := find_spec(package)) and found.origin for package in EXTRAS[extra]):
        raise ConfigError(f"{wanted_by} needs the extra {extra}, which is not installed: pip install -e '.[{extra}]'")
