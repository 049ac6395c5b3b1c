"""Rice's code against one written bit by bit from its definition."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from fedact.compression.transform.rice import (
    MOST_REMAINDER_BITS,
    Coded,
    best_parameter,
    coded_bits,
    coded_bytes,
    decode,
    encode,
)

pairs = st.lists(st.tuples(st.integers(0, 5000), st.integers(0, MOST_REMAINDER_BITS)), max_size=60)


def tensors(given_pairs: list[tuple[int, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    numbers, parameters = zip(*given_pairs, strict=True) if given_pairs else ((), ())
    return torch.tensor(numbers, dtype=torch.int32), torch.tensor(parameters, dtype=torch.uint8)


def written(numbers: torch.Tensor, parameters: torch.Tensor) -> Coded:
    return encode(numbers, parameters, coded_bits(numbers, parameters))


def bit_by_bit(bits: str) -> list[int]:
    """Bytes of a string of bits, the first in a byte's lowest place."""
    padded = bits + "0" * (-len(bits) % 8)
    return [int(padded[place : place + 8][::-1], 2) for place in range(0, len(padded), 8)]


@given(pairs)
def test_the_bits_are_those_of_the_definition(given_pairs):
    coded = written(*tensors(given_pairs))
    unary = "".join("0" * (number >> bits) + "1" for number, bits in given_pairs)
    remainders = "".join(format(number & (2**bits - 1), f"0{bits}b")[::-1] for number, bits in given_pairs if bits)
    assert coded.unary.tolist() == bit_by_bit(unary)
    assert coded.remainders.tolist() == bit_by_bit(remainders)


@given(pairs)
def test_what_is_written_is_read_back_and_its_size_was_known(given_pairs):
    numbers, parameters = tensors(given_pairs)
    coded = written(numbers, parameters)
    assert torch.equal(decode(coded, parameters), numbers)
    assert coded_bytes(coded_bits(numbers, parameters)) == sum(map(len, coded))


@given(pairs, st.integers(0, 2**31))
def test_what_follows_in_the_same_bytes_does_not_matter(given_pairs, seed):
    numbers, parameters = tensors(given_pairs)
    unary, remainders = written(numbers, parameters)
    more = torch.randint(256, (5,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(decode(Coded(unary, torch.cat([remainders, more])), parameters), numbers)


@given(st.floats(0, 3000))
def test_the_parameter_is_nearly_the_best_for_a_geometric_distribution(mean):
    zeros = mean / (1 + mean)

    def bits(parameter: int) -> float:
        tail = zeros ** (2**parameter)
        return parameter + 1 / (1 - tail)

    chosen = int(best_parameter(torch.tensor(mean, dtype=torch.float64)))
    assert bits(chosen) <= 1.04 * min(bits(parameter) for parameter in range(MOST_REMAINDER_BITS + 1))
