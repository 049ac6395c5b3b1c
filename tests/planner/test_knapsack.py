"""One option for each tensor: the least error within the bytes, and never a byte more, also where ways are thinned out."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedact.planner.knapsack import Option, allocate
from tests.support.portions import examples

options = st.builds(Option, st.integers(0, 60), st.floats(0, 10).map(lambda error: round(error, 3)))
groups_of_options = st.lists(st.lists(options, min_size=1, max_size=5), min_size=1, max_size=5)


def total(groups, chosen) -> Option:
    taken = [group[place] for group, place in zip(groups, chosen, strict=True)]
    return Option(sum(option.size for option in taken), sum(option.error for option in taken))


def least_error(groups, capacity) -> float | None:
    """Return the least error of all ways there are, None where none fits."""
    ways = (total(groups, chosen) for chosen in product(*(range(len(group)) for group in groups)))
    return min((way.error for way in ways if way.size <= capacity), default=None)


def smallest(groups) -> int:
    return sum(min(option.size for option in group) for group in groups)


@examples(150)
@given(groups_of_options, st.integers(0, 200))
def test_no_other_way_within_the_capacity_has_less_error(groups, capacity):
    chosen, best = allocate(groups, capacity), least_error(groups, capacity)
    if chosen is None:
        assert best is None
    else:
        assert total(groups, chosen).size <= capacity
        assert total(groups, chosen).error == pytest.approx(best)


@examples(150)
@given(groups_of_options, st.integers(0, 200), st.integers(1, 8))
def test_thinned_ways_still_keep_the_capacity_and_something_is_found_wherever_anything_fits(groups, capacity, most_ways):
    chosen = allocate(groups, capacity, most_ways)
    assert (chosen is None) == (smallest(groups) > capacity)
    if chosen is not None:
        assert total(groups, chosen).size <= capacity
        assert total(groups, chosen).error >= least_error(groups, capacity) - 1e-9


@given(groups_of_options, st.integers(0, 100))
def test_what_just_fits_is_found(groups, room):
    assert allocate(groups, smallest(groups)) is not None
    assert allocate(groups, smallest(groups) - 1) is None
    assert total(groups, allocate(groups, smallest(groups))).size == smallest(groups)
    more = total(groups, allocate(groups, smallest(groups) + room))
    assert more.error <= total(groups, allocate(groups, smallest(groups))).error + 1e-9


@given(st.lists(options, min_size=1, max_size=9), st.integers(0, 80))
def test_with_no_other_tensor_the_best_option_that_fits_is_taken(group, capacity):
    chosen = allocate([group], capacity)
    fitting = [option.error for option in group if option.size <= capacity]
    assert (chosen is None) == (not fitting)
    assert chosen is None or group[chosen[0]].error == min(fitting)


@pytest.mark.parametrize("most_ways", [100, 300])
def test_thinning_costs_little_where_errors_fall_with_the_bytes_as_measured_ones_do(most_ways):
    """Beyond so many ways nothing is proven: twenty tensors whose errors halve with every eighth of their bytes."""
    groups = [[Option(1_000 * size * part, size * 0.5**part) for part in range(1, 9)] for size in range(1, 21)]
    bytes_of_all = sum(group[-1].size for group in groups)
    for share in (0.2, 0.5, 0.8):
        capacity = int(share * bytes_of_all)
        way, best = total(groups, allocate(groups, capacity, most_ways)), total(groups, allocate(groups, capacity, 10**9))
        assert way.size <= capacity
        assert best.error <= way.error <= 1.05 * best.error
