"""Which ReLUs need no mask: those whose very output a trained layer keeps, and no others."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fedact
from fedact.nn.graph import consumers, product_factors
from tests.support.laws import relative_error
from tests.support.networks import measure, packed_bytes, train

X, Y = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3])


class Net(nn.Module):
    """Three convolutions, an activation, and the way between them that a test wants to see."""

    def __init__(self, way, act: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.way, self.act, self.again = way, act, nn.Hardswish(inplace=True)
        self.first, self.second, self.third = (nn.Conv2d(inputs, 4, 3, padding=1) for inputs in (3, 4, 4))
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.way(self, x).mean((2, 3)))


def direct(net, x):
    return net.third(net.act(net.second(net.first(x))))


def through_dropout(net, x):
    return net.third(net.drop(net.act(net.second(net.first(x)))))


def also_added(net, x):
    z = net.act(net.second(net.first(x)))
    return net.third(z) + z


def in_two_places(net, x):
    return net.third(net.act(net.second(net.act(net.first(x)))))


def pooled(net, x):
    return net.third(F.max_pool2d(net.act(net.second(net.first(x))), 2))


def scaled(net, x):
    return net.third(net.act(net.second(net.first(x))) * 2)


def at_the_end(net, x):
    return net.act(net.third(net.second(net.first(x))))


def in_one_of_two_places(net, x):
    return net.act(net.third(net.act(net.second(net.first(x)))))


def added_in_place(net, x):
    z = net.act(net.second(net.first(x)))
    z += 1
    return net.third(z)


def untraceable(net, x):
    z = net.act(net.second(net.first(x)))
    return net.third(z) if z.sum() > 0 else z


def changed_by_a_method(net, x):
    z = net.act(net.second(net.first(x)))
    z.add_(1)
    return net.third(z)


def changed_by_a_function(net, x):
    z = net.act(net.second(net.first(x)))
    F.leaky_relu(z.sub_(1), inplace=True)
    return net.third(z)


NEEDLESS = [direct, through_dropout, also_added, in_two_places]
NEEDED = [pooled, scaled, at_the_end, in_one_of_two_places, added_in_place, untraceable]
CHANGED = [changed_by_a_method, changed_by_a_function]


def gradients(way, act: nn.Module, text: str) -> dict[str, Tensor]:
    model = fedact.compress(Net(way, act), text, layers=2)
    train(model, X, Y)
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("way", NEEDLESS + NEEDED)
@pytest.mark.parametrize("text", ["exact", "hosvd:variance=0.8"])
def test_masks_are_dropped_where_the_very_output_is_kept_and_nowhere_else(way, text):
    model = fedact.compress(Net(way, nn.ReLU6()), text, layers=2)
    assert model.act.output_is_saved == (way in NEEDLESS and text == "exact")


@pytest.mark.parametrize("way", NEEDLESS)
def test_a_dropped_mask_holds_no_byte_and_hides_none(way):
    model = fedact.compress(Net(way, nn.ReLU()), "exact", layers=2)
    without = measure(model, lambda: train(model, X, Y), (X, Y))
    assert without.saved_bytes == packed_bytes(model, X, Y)
    model.act.output_is_saved = False
    masks = (way is in_two_places) + 1
    assert measure(model, lambda: train(model, X, Y), (X, Y)).saved_bytes - without.saved_bytes in (128, 128 * masks)
    assert without.hidden_bytes == 0


@pytest.mark.parametrize("way", NEEDLESS + NEEDED + CHANGED)
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("kind", [nn.ReLU, nn.ReLU6])
def test_with_or_without_masks_the_gradient_is_autograds(way, kind, inplace):
    try:
        expected = gradients(way, kind(inplace=inplace), "vanilla")
    except RuntimeError:
        pytest.skip("autograd itself keeps what is changed in place")
    actual = gradients(way, kind(inplace=inplace), "exact")
    assert actual.keys() == expected.keys()
    assert all(relative_error(actual[name], expected[name]) < 1e-5 for name in expected)


def test_code_that_cannot_be_traced_tells_nothing():
    assert consumers(Net(untraceable, nn.ReLU())) == {}


def test_a_way_that_changes_is_looked_at_anew():
    model = fedact.compress(Net(direct, nn.ReLU()), "exact", layers=2)
    model.way = scaled
    assert not fedact.compress(model, "exact", layers=2).act.output_is_saved


def test_hooks_see_their_modules_and_stay_where_they_are():
    model, seen = Net(direct, nn.ReLU()), []
    model.act.register_forward_hook(lambda module, args, output: seen.append(output))
    fedact.compress(model, "exact", layers=2)
    assert not seen
    train(model, X, Y)
    assert len(seen) == len(model.act._forward_hooks) == 1


def test_under_autocast_a_mask_is_kept_where_a_copy_is_kept():
    model = fedact.compress(Net(lambda net, x: net.third(net.act(net.second(net.first(x)).float())), nn.ReLU()), "exact", 2)
    with torch.autocast("cpu", torch.bfloat16):
        memory = measure(model, lambda: train(model, X, Y), (X, Y))
    assert memory.hidden_bytes == 0
    assert memory.by_layer["act"] == 4 * 4 * 8 * 8 // 8


class Gated(nn.Module):
    """A sigmoid whose output goes where ``way`` says."""

    def __init__(self, way) -> None:
        super().__init__()
        self.way, self.conv, self.gate = way, nn.Conv2d(3, 3, 1), nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return self.way(self.conv(x), self.gate(self.conv(x)))


@pytest.mark.parametrize(
    ("way", "kept"),
    [
        (lambda x, gate: x * gate, True),
        (lambda x, gate: torch.mul(gate, x), True),
        (lambda x, gate: x.mul(gate), True),
        (lambda x, gate: x * gate + gate, False),
        (lambda x, gate: 6 * gate, False),
        (lambda x, gate: gate, False),
    ],
)
def test_a_gate_is_what_goes_into_products_of_two_tensors_alone(way, kept):
    model = Gated(way)
    assert ("gate" in product_factors(model)) == kept
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fedact.compress(model, "exact", layers=1)
    assert any("gate (Sigmoid)" in str(each.message) for each in caught) == (not kept)
