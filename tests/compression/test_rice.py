"""Rice's code against one written bit by bit from its definition."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fedact.compression.transform.rice import (
    MOST_REMAINDER_BITS,
    best_parameter,
    read_fields,
    read_unary,
    write_fields,
    write_unary,
)

numbers = st.lists(st.integers(0, 5000), max_size=60).map(lambda given_numbers: np.array(given_numbers, dtype=np.int32))
fields = st.lists(st.tuples(st.integers(0, 2**31 - 1), st.integers(0, 31)), max_size=60)


def arrays(pairs: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Fields no wider than their widths, and the widths."""
    given_fields, widths = zip(*pairs, strict=True) if pairs else ((), ())
    cut = [number % 2**width for number, width in zip(given_fields, widths, strict=True)]
    return np.array(cut, dtype=np.int32), np.array(widths, dtype=np.int32)


def bit_by_bit(bits: str) -> list[int]:
    """Bytes of a string of bits, the first in a byte's lowest place."""
    padded = bits + "0" * (-len(bits) % 8)
    return [int(padded[place : place + 8][::-1], 2) for place in range(0, len(padded), 8)]


@given(numbers)
def test_quotients_are_in_unary(given_numbers):
    packed = write_unary(given_numbers)
    assert packed.tolist() == bit_by_bit("".join("0" * number + "1" for number in given_numbers))
    assert read_unary(packed).tolist() == given_numbers.tolist()


@given(fields)
def test_fields_lie_side_by_side_the_lowest_bit_first(pairs):
    given_fields, widths = arrays(pairs)
    pieces = (format(number, f"0{width}b")[::-1] for number, width in zip(given_fields, widths, strict=True) if width)
    packed = write_fields(given_fields, widths)
    assert packed.tolist() == bit_by_bit("".join(pieces))
    assert read_fields(packed, widths).tolist() == given_fields.tolist()


@given(fields, st.integers(0, 2**31))
def test_what_follows_in_the_same_bytes_does_not_matter(pairs, seed):
    given_fields, widths = arrays(pairs)
    more = np.random.default_rng(seed).integers(0, 256, 5, dtype=np.uint8)
    packed = np.concatenate([write_fields(given_fields, widths), more])
    assert read_fields(packed, widths).tolist() == given_fields.tolist()


@given(st.floats(0, 3000))
def test_the_parameter_is_nearly_the_best_for_a_geometric_distribution(mean):
    zeros = mean / (1 + mean)

    def bits(parameter: int) -> float:
        tail = zeros ** (2**parameter)
        return parameter + 1 / (1 - tail)

    chosen = int(best_parameter(np.float64(mean)))
    assert bits(chosen) <= 1.04 * min(bits(parameter) for parameter in range(MOST_REMAINDER_BITS + 1))
