"""How much of a product, or of a property's examples, a run tries: a portion in CI, all of it with ``-m exhaustive``."""

from collections.abc import Iterable
from itertools import product
from math import ceil

import pytest
from hypothesis import settings

WHOLE = 100
"""Examples of a property in the exhaustive profile, where a test does not say how many; others are in proportion."""
PORTIONS = {"ci": 30, "exhaustive": WHOLE}


def examples(most: int) -> settings:
    """Return the settings of a property that takes so many examples in the exhaustive profile."""
    return settings(max_examples=ceil(most * settings().max_examples / WHOLE))


def rotated(of: int, **axes: Iterable[object]) -> pytest.MarkDecorator:
    """Parametrize over a product of which one case of ``of`` always runs, and the others with ``-m exhaustive``.

    They take turns: every value of an axis always meets some of the values of every other.
    """
    named = {name: [(place, value) for place, value in enumerate(values)] for name, values in axes.items()}
    cases = []
    for case in product(*named.values()):
        marks = [] if sum(place for place, _ in case) % of == 0 else [pytest.mark.exhaustive]
        name = "-".join(getattr(value, "__name__", str(value)) for _, value in case)
        cases.append(pytest.param(*(value for _, value in case), marks=marks, id=name))
    return pytest.mark.parametrize(list(named), cases)
