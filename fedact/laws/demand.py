"""A law's demand, and what is said where it is not met."""

from typing import Any


class BrokenLaw(AssertionError):
    """A law does not hold; says in a line what was found."""


def demand(met: Any, otherwise: str) -> None:
    """Raise BrokenLaw with this line unless the demand is met.

    >>> demand(1 + 1 == 2, "arithmetic fails")
    """
    if not met:
        raise BrokenLaw(otherwise)
