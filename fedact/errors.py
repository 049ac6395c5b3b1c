"""The one error a user can cause, and the sentence it carries."""

from collections.abc import Iterable
from difflib import get_close_matches


class ConfigError(ValueError):
    """Bad input: one line that says what is wrong, what was given and what is allowed."""


class BudgetError(RuntimeError):
    """A measured step held more bytes than its budget allows."""


def nearest(given: str, allowed: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?`` for the closest allowed word, or nothing."""
    close = get_close_matches(given, list(allowed), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def unknown(kind: str, given: str, allowed: Iterable[str]) -> ConfigError:
    """Return the error for a word that is in no table."""
    names = sorted(allowed)
    return ConfigError(f"unknown {kind} {given!r}: allowed are {', '.join(names)}{nearest(given, names)}")
