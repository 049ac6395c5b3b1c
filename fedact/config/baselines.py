"""What federating is compared with, in rows of its own: each client alone, and all examples in one place."""

from collections.abc import Iterable, Sequence

LOCAL, CENTRAL = "local", "central"
BASELINES = {
    LOCAL: "each client alone: nothing is averaged, and its model goes on from round to round",
    CENTRAL: "all clients' training examples in one place, under the largest budget",
}
"""The one table of baselines."""
WITHOUT_A_SERVER = {"strategy": "fedavg", "privacy": "none", "faults": "none", "deadline": None}
"""A run's settings as its baselines have them: nothing is sent that could be averaged, hidden or lost."""


def baseline_of(name: str) -> str | None:
    """Return the baseline that a row's ``method`` names, None where it is a method itself.

    >>> baseline_of("local:hosvd:variance=0.8"), baseline_of("hosvd:variance=0.8")
    ('local', None)
    """
    first, colon, _ = name.partition(":")
    return first if colon and first in BASELINES else None


def method_of(name: str) -> str:
    """Return the full name of the method that a row's ``method`` is of.

    >>> method_of("central:hosvd:variance=0.8")
    'hosvd:variance=0.8'
    """
    return name if baseline_of(name) is None else name.partition(":")[2]


def with_baselines(methods: Sequence[str], baselines: Iterable[str]) -> list[str]:
    """Return what a run has rows of: the methods, then each baseline of each.

    >>> with_baselines(["exact", "asi"], ["central"])
    ['exact', 'asi', 'central:exact', 'central:asi']
    """
    return [*methods, *(f"{baseline}:{method}" for baseline in baselines for method in methods)]
