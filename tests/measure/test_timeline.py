"""Bytes of a step from another step's timeline and the sizes that the codecs say: those of the ledger, to the byte."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fedact
from fedact.measure.memory import Memory, measure_memory
from fedact.measure.timeline import Levels, Use
from fedact.nn.layers.stored_sizes import StoredSizes
from tests.support import planned
from tests.support.laws import EVERY_SETTING
from tests.support.portions import rotated
from tests.support.storing import normed, residual, smooth


def data(size: int, side: int, seed: int, rank: int | None) -> tuple[Tensor, Tensor]:
    """Return images, of a few patterns only where a rank is given, so that methods store less of them."""
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.randn(rank or size, 3 * side * side, generator=generator)
    weights = torch.eye(size) if rank is None else torch.randn(size, rank, generator=generator)
    return (weights @ patterns).view(size, 3, side, side), torch.arange(size) % 4


def measured(model: nn.Module, batch: tuple[Tensor, Tensor], stored: StoredSizes) -> Memory:
    with measure_memory(model, inputs=batch, stored=stored) as memory:
        F.cross_entropy(model(batch[0]), batch[1]).backward()
    model.zero_grad()
    return memory


@rotated(3, network=[residual, smooth, normed], method=EVERY_SETTING)
def test_every_step_of_a_shape_follows_from_one_timeline_and_what_codecs_say(network, method):
    torch.manual_seed(0)
    network, options = network()
    model = fedact.compress(network, method, **options)
    side, timelines = 16, {}
    with StoredSizes(model) as stored:
        for seed, (size, rank) in enumerate([(6, None), (6, 2), (3, None), (6, 1), (3, 1), (6, 3)]):
            memory = measured(model, data(size, side, seed, rank), stored)
            own, one = memory.timeline, timelines.setdefault((size, seed > 0), memory.timeline)
            assert (one.calls, one.slots) == (own.calls, own.slots)
            assert one.saved_bytes(stored.sizes) + stored.state_bytes == memory.saved_bytes
            assert one.paper_bytes(stored.paper) == memory.paper_bytes
            assert stored.state_bytes == memory.state_bytes
            # Whatever was measured, the peak is the same.
            assert one.peak_bytes(stored.sizes, 7) == own.peak_bytes(stored.sizes, 7)
            assert max(own.peak_bytes(own.sizes, own.working_bytes), memory.saved_bytes) == memory.peak_bytes


@pytest.mark.parametrize("method", ["exact", "quantize", "gradient_filter", "hosvd:ranks=1x2x2x2"])
def test_methods_whose_bytes_follow_from_shapes_say_nothing_unless_asked(method):
    model, batch = fedact.compress(planned.net(), method, layers=3), planned.batch(6)
    for every in (False, True):
        with StoredSizes(model, every) as stored:
            memory = measured(model, batch, stored)
        assert memory.working_bytes == 0 or every
        assert bool(stored.calls) is bool(memory.timeline.slots) is every
        assert memory.timeline.saved_bytes(stored.sizes) + memory.state_bytes == memory.saved_bytes


def test_other_sizes_in_a_timeline_give_the_bytes_of_the_method_that_stores_them():
    """An exact step's timeline, with what a codec would store in the place of each input, is that codec's step."""
    batch, found = planned.batch(6), {}
    for method in ("hosvd:ranks=2x2x2x2", "hosvd:ranks=3x2x3x3"):
        model = fedact.compress(planned.net(), method, layers=3)
        with StoredSizes(model, every=True) as stored:
            found[method] = measured(model, batch, stored), stored.sizes
    (one, _), (other, sizes) = found.values()
    assert one.timeline.saved_bytes(sizes) == other.saved_bytes != one.saved_bytes


def test_codecs_are_told_of_nobody_once_the_count_is_over():
    model = fedact.compress(planned.net(), "hosvd:variance=0.8", layers=3)
    with StoredSizes(model) as stored:
        pass
    planned.step(model, *planned.batch(6))
    assert stored.calls == []


@pytest.mark.parametrize("seed", range(5))
def test_the_most_of_levels_is_that_of_every_moment(seed):
    generator = torch.Generator().manual_seed(seed)
    spans = torch.randint(0, 12, (9, 2), generator=generator).sort(1).values.tolist()
    sizes = torch.randint(1, 100, (9,), generator=generator).tolist()
    uses = [Use(*span, 10**9, slot) for slot, span in enumerate(spans)]
    totals = [sum(size for (start, stop), size in zip(spans, sizes, strict=True) if start <= t <= stop) for t in range(13)]
    assert Levels(uses).most(sizes) == max(totals)
    assert Levels([]).most() == 0
