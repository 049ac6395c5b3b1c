"""What blocks in streams have to spare: together with all else that is alive, as much as at the worst block."""

import pytest
import torch
from torch import nn

import fedact
from fedact.nn.streams.areas import reduction
from fedact.nn.streams.install import blocks_of
from fedact.nn.streams.spare import Narrow, spares
from tests.support.inverted_residuals import small


def test_every_block_may_fill_up_to_the_worst_ones_bytes():
    # Of images; the worst one; frozen behind it; as long as there is a gradient.
    blocks = [Narrow(3, 10, 0, True, True), Narrow(10, 8, 1, False, True), Narrow(8, 8, 1, False, True)]
    images, worst, last = spares(blocks)
    # Backward: 10; 10 kept, 10 and 8; 18 kept, 8 and 8.
    assert [3 * images.backward, 10 * worst.backward, 8 * last.backward] == pytest.approx([24, 6, 0])
    # Forward an input that is kept as it is has no gradient yet.
    assert [3 * images.forward, 10 * worst.forward, 8 * last.forward] == pytest.approx([24, 16, 8])
    # Without gradients: 10; 10 and 8; 8 and 8.
    assert [3 * images.frozen, 10 * worst.frozen, 8 * last.frozen] == pytest.approx([8, 0, 2])


def test_a_method_with_loss_keeps_less():
    (spare, _) = spares([Narrow(4, 4, 0.25, False, True), Narrow(4, 8, 0.25, False, True)])
    # 1 kept, 4 and 4; 2 kept, 4 and 8: what is kept beside the input is an input too.
    assert 4 * spare.backward == 4 * spare.forward == pytest.approx(5)


def test_nothing_is_spared_for_blocks_with_a_gradient_where_none_has_one():
    assert {spare.backward for spare in spares([Narrow(4, 4, 0, False, False), Narrow(4, 8, 0, False, False)])} == {0}


@pytest.mark.parametrize(("module", "factor"), [(nn.Conv2d(1, 1, 3, (2, 1)), 2), (nn.MaxPool2d(2), 4), (nn.ReLU(), 1)])
def test_strides_leave_fewer_positions(module, factor):
    assert reduction(module) == factor


def test_a_block_has_as_much_more_room_as_it_has_images():
    model = fedact.compress(small(), "exact", layers=12, room=2000)
    for block in blocks_of(model):
        one, two = block.rooms(400), block.rooms(800)
        assert all(more - 2000 == pytest.approx(2 * (few - 2000), abs=1) for few, more in zip(one, two, strict=True))
    with torch.no_grad():
        assert model(torch.rand(2, 3, 24, 24)).shape == (2, 3)
