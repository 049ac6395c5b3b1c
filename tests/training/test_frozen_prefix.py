"""Training from where the frozen part ends."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fedact.compression.exact import Exact
from fedact.config.plan import Plan
from fedact.data import Examples, Loader, Preprocessing
from fedact.measure.memory import measure_memory
from fedact.nn.prefix.split import split
from fedact.nn.surgery import apply, install
from fedact.planner import make_plan
from fedact.training import frozen_prefix as frozen
from fedact.training.frozen_prefix import BatchOutputs, frozen_prefix
from tests.support.inverted_residuals import InvertedResidual, network, shaken

EXAMPLES = 40


@pytest.fixture(scope="module")
def loader() -> Loader:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (EXAMPLES, 8, 8, 3), dtype=np.uint8)
    return Loader(Examples(images, random.integers(0, 3, EXAMPLES)), Preprocessing(8, 8, (0.5,) * 3, (0.5,) * 3))


@pytest.fixture(scope="module")
def planned(loader) -> tuple[nn.Module, Plan]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 3)
        )
    plan = make_plan(model.eval(), None, loader(np.arange(8)), "exact", 1)
    return apply(model, plan), plan


def test_the_rest_goes_on_as_the_whole_model_would(loader, planned):
    model, plan = planned
    batches = frozen_prefix(model, plan, loader, EXAMPLES).from_memory(loader)
    chosen = np.array([5, 39, 0])
    outputs, labels = batches(chosen)
    x, y = loader(chosen)
    assert torch.equal(labels, y)
    torch.testing.assert_close(outputs.scores(), model(x))
    torch.testing.assert_close(outputs[1:].scores(), model(x[1:]))


def test_values_are_the_same_whether_held_or_made_each_time(loader, planned):
    part = frozen_prefix(*planned, loader, EXAMPLES)
    for chosen in (np.arange(EXAMPLES), np.array([7]), np.array([30, 2])):
        (held, _), (passing, _) = part.from_memory(loader)(chosen), part.on_demand(loader)(chosen)
        assert all(map(torch.equal, held.values, passing.values))


def test_a_client_too_large_to_be_held_is_run_in_the_smallest_groups(loader, planned, monkeypatch):
    assert frozen_prefix(*planned, loader, EXAMPLES).group > frozen.MIN_GROUP
    monkeypatch.setattr(frozen, "MAX_MEMORY_BYTES", 1000)
    part = frozen_prefix(*planned, loader, EXAMPLES)
    assert part.group == frozen.MIN_GROUP
    assert not part.fits_in_memory(EXAMPLES)


def test_the_peak_is_that_of_as_many_examples(loader, planned):
    outputs, _ = frozen_prefix(*planned, loader, EXAMPLES).from_memory(loader)(np.arange(16))
    assert isinstance(outputs, BatchOutputs)
    # The first convolution's output, and the ReLU's.
    whole, part = outputs.peak_bytes(), outputs[:4].peak_bytes()
    assert whole == 4 * part
    assert part >= 4 * 8 * 36 * 4


def test_the_peak_is_that_of_the_plans_tiles(loader, planned):
    model, plan = planned
    peaks = [
        frozen_prefix(model, replace(plan, tiles=tiles), loader, EXAMPLES).from_memory(loader)(np.arange(4))[0].peak_bytes()
        for tiles in (0, 1, 2)
    ]
    whole = 4 * 8 * 36 * 4
    # One by one 3 x 3 outputs, beside all of them, and the region of the image that they need.
    assert peaks == [2 * whole, whole, whole + 4 * (8 * 9 + 3 * 25) * 4]


class Staged(nn.Module):
    """A network of a stem and stages, whose code is known."""

    __module__ = "timm.models"

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.side = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1)
        self.stages = nn.Sequential(*(nn.Conv2d(8, 8, 3, padding=1) for _ in range(3)))
        self.last = nn.Sequential(nn.Flatten(), nn.Linear(8 * 36, 3))

    def forward(self, x):
        x = self.stages(self.stem(x))
        return self.last(self.side(x))


@pytest.mark.parametrize("layers", [0, 1, 2])
def test_no_call_of_a_known_networks_stages_keeps_its_input_in_either_part(loader, layers):
    model = Staged().eval()
    plan = make_plan(model, None, loader(np.arange(8)), "exact", layers)
    applied = apply(model, plan)
    outputs, y = frozen_prefix(applied, plan, loader, EXAMPLES).from_memory(loader)(np.arange(plan.micro_batch))
    with measure_memory(applied, (outputs.values, y)) as rest:
        F.cross_entropy(outputs.scores(), y).backward()
    assert max(outputs.peak_bytes(), rest.peak_bytes) == plan.peak_bytes
    assert outputs.peak_bytes() == plan.micro_batch * 2 * 8 * 36 * 4


def test_nothing_is_cut_where_every_layer_is_trained(loader):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 3)).eval()
    plan = make_plan(model, None, loader(np.arange(8)), "exact", 1)
    assert frozen_prefix(apply(model, plan), plan, loader, EXAMPLES) is None


def flat() -> nn.Sequential:
    """Return two inverted residuals without a module of their own, so that the cut goes through the one that runs them."""
    stages = [nn.Conv2d(3, 8, 3), *(layer for _ in range(2) for layer in InvertedResidual(8, 32, 8).conv)]
    return shaken(nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))).eval()


@pytest.mark.parametrize("layers", [0, 1, 3, 5])
@pytest.mark.parametrize("build", [flat, lambda: network(InvertedResidual(8, 32, 8), InvertedResidual(8, 32, 6), stem=8)])
def test_the_peak_is_that_of_the_plans_streams_and_the_host_runs_whole_maps(loader, build, layers):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build().eval()
    plan = replace(make_plan(model, None, loader(np.arange(8)), "exact", layers), room_bytes=500)
    applied = apply(copy.deepcopy(model), plan)
    part = frozen_prefix(applied, plan, loader, EXAMPLES)
    assert part is not None
    (x, y), (outputs, _) = loader(np.arange(4)), part.from_memory(loader, steady=True)(np.arange(4))
    with measure_memory(applied, (x, y)) as whole:
        F.cross_entropy(applied(x), y).backward()
    expected = {name: p.grad.clone() for name, p in applied.named_parameters() if p.grad is not None}
    applied.zero_grad()
    with measure_memory(applied, (outputs.values, y)) as rest:
        F.cross_entropy(outputs.scores(), y).backward()
    assert max(outputs.peak_bytes(), rest.peak_bytes) == whole.peak_bytes
    for name, gradient in expected.items():
        torch.testing.assert_close(applied.get_parameter(name).grad, gradient, rtol=1e-3, atol=1e-5)
    # In the fast engine it is more.
    fast = replace(plan, room_bytes=None)
    other = frozen_prefix(apply(model, fast), fast, loader, EXAMPLES).from_memory(loader)(np.arange(4))[0]
    assert outputs.peak_bytes() < other.peak_bytes()


def test_nothing_is_cut_within_a_block_in_streams(loader):
    class Beside(nn.Module):
        """A trained layer beside a frozen block, which runs in between in definition order."""

        def __init__(self) -> None:
            super().__init__()
            self.stem, self.side, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Linear(8, 3)
            self.expand, self.project = nn.Conv2d(8, 32, 1), nn.Conv2d(32, 8, 1)
            self.depthwise = nn.Conv2d(32, 32, 3, padding=1, groups=32)

        def forward(self, x):
            x = self.stem(x)
            wide, side = self.depthwise(self.expand(x)), self.side(x)
            return self.head((self.project(wide) + side).mean((2, 3)))

    model = Beside().eval()
    methods = {name: Exact() for name in ("side", "head")}
    assert split(install(model, methods)) is not None
    assert split(install(model, methods, room=500)) is None


def test_the_frozen_part_reads_what_lies_before_the_cut_and_nothing_after(loader, planned):
    part = frozen_prefix(*planned, loader, EXAMPLES)
    assert set(part.tensors) == {"0.weight", "0.bias"}
    assert part.reads(["0.weight", "5.bias"])
    assert not part.reads(["2.weight", "5.bias"])
