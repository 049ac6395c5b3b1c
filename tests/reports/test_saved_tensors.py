"""How a plan's tensors are saved, in words: the methods with factors are those that are known, ranks have their range."""

import pytest

from fedact.compression import METHODS
from fedact.compression.lowrank.decomposition import LowRank
from fedact.reports.saved_tensors import FACTORS, saved_tensors


def test_the_methods_with_factors_are_those_of_the_table():
    assert set(FACTORS) == {name for name, entry in METHODS.items() if issubclass(entry, LowRank)}


@pytest.mark.parametrize(
    ("methods", "words"),
    [
        ([], "none"),
        (["exact", "exact"], "2 of 2 exactly"),
        (["exact:derive=2", "quantize:bits=8", "quantize"], "2 of 3 by quantize, 1 of 3 exactly"),
        (["hosvd:ranks=3x3x3x3"], "1 of 1 as factors by hosvd (ranks 3)"),
        (["hosvd:ranks=8x2", "exact", "hosvd:ranks=1x5x4x4"], "2 of 3 as factors by hosvd (ranks 1 to 8), 1 of 3 exactly"),
        (["hosvd:ranks=1x2x1x1,bits=8", "hosvd:ranks=1x2x1x1"], "2 of 2 as factors by hosvd (ranks 1 to 2, 8 bits)"),
        (["hosvd:variance=0.8,max_ranks=9x7x2x2"], "1 of 1 as factors by hosvd (ranks at most 2 to 9)"),
        (["hosvd:variance=0.8"], "1 of 1 as factors by hosvd"),
        (["svd:ranks=2", "svd:ranks=4"], "2 of 2 as factors by svd (ranks 2 to 4)"),
    ],
)  # fmt: skip
def test_each_way_has_its_count_and_factors_the_range_of_their_ranks(methods, words):
    assert saved_tensors(methods) == words
