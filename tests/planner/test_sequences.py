"""Plans for transformers and networks of series: peaks are predicted, budgets hold, exact gradients are autograd's."""

import copy
from math import prod

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fedact
from fedact.compression import make_method
from fedact.compression.exact import Exact
from fedact.compression.quantize import Quantize
from fedact.config.errors import ConfigError
from fedact.measure.memory import measure_memory
from fedact.models.micro_batch import add_gradient
from fedact.models.temporal import TemporalResNet
from fedact.nn.layers.base import EXAMPLE_NORMS
from fedact.nn.surgery import calibrate, layer_inputs, trained_parameters
from fedact.planner.peak_prediction import PeakPrediction
from fedact.planner.problem import WHOLE, PrefixSchedule, make_problem
from fedact.planner.step_memory import measure_step
from fedact.planner.step_structure import StepStructure, layers_with_input
from fedact.reports.plan.figures import plans_against_budget
from tests.support import transformers
from tests.support.portions import rotated

pytestmark = pytest.mark.filterwarnings("ignore:not compressed")
CLASSES = 5


class Series(nn.Module):
    """A network of series, whose last convolution is one position wide."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv1d(6, 12, 5, 2, 2), nn.BatchNorm1d(12), nn.ReLU(), nn.Conv1d(12, 16, 3, 1, 1), nn.GELU()),
            *(nn.Conv1d(16, 24, 1), nn.ReLU()),
        )
        self.head = nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean(-1))


class Tokens(nn.Module):
    """Two layers on tokens, each channel's GELU between; the second one's weight is large beside its maps."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(10, 128), nn.GELU(), nn.Linear(128, 160))
        self.head = nn.Linear(160, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean(1))


def series(batch: int = 8) -> Tensor:
    return torch.randn(batch, 6, 48, generator=torch.Generator().manual_seed(0)).cumsum(2)


def pictures(batch: int = 8) -> Tensor:
    return transformers.batch(32, batch)[0]


def tokens(batch: int = 8) -> Tensor:
    return torch.randn(batch, 9, 10, generator=torch.Generator().manual_seed(0)).cumsum(1)


NETWORKS = {
    "series": (Series, series),
    "tokens": (Tokens, tokens),
    "vit": (transformers.vit, pictures),
    "swin": (transformers.swin, lambda batch=8: transformers.batch(40, batch)[0]),
    "timm's vit": (transformers.timm_vit, pictures),
}
METHODS = ["exact", "hosvd", "asi", "lance", "quantize:bits=4", "transform", "gradient_filter", "auto"]


def network(name: str) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    make, inputs = NETWORKS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make().eval()
    x = inputs()
    return model, (x, torch.arange(len(x)) % CLASSES)


@rotated(of=4, name=NETWORKS, text=["exact", "vanilla", "svd:ranks=2", "quantize:bits=4"])
def test_a_predicted_peak_is_the_measured_one(name, text):
    model, example = network(name)
    problem = make_problem(model, example, method=make_method(text), budget=None, scope="peak", loss=F.cross_entropy)
    inputs = problem.inputs(problem.trained(2), 1)
    methods = {key: make_method(text).for_dimensions(x.dim()) for key, x in inputs.items()}
    peaks = PeakPrediction(problem)
    for size, prefix in ((1, WHOLE), (4, WHOLE), (8, PrefixSchedule(2))):
        measured = measure_step(problem, methods, size, prefix).peak_bytes
        predicted = peaks.peak_bytes(methods, size, prefix)
        assert predicted == measured if make_method(text).traits.keeps_input else abs(predicted - measured) < 0.05 * measured


class Groups(nn.Module):
    """Trained convolutions before norms of each example's, with nothing between."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv1d(6, 12, 5, 2, 2), nn.ReLU(), nn.Conv1d(12, 12, 3, 1, 1), nn.GroupNorm(3, 12), nn.ReLU()),
            *(nn.Conv1d(12, 16, 3, 1, 1), nn.InstanceNorm1d(16, affine=True), nn.ReLU()),
        )
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean(-1))


@pytest.mark.parametrize("name", ["vit", "swin", "timm's vit", "groups"])
def test_what_norms_save_beside_their_inputs_is_counted_in_every_prediction(name):
    model, example = (Groups().eval(), (series(), torch.arange(8) % CLASSES)) if name == "groups" else network(name)
    asked = make_problem(
        model, example, method=make_method("quantize:bits=4"), budget=None, scope="peak", loss=F.cross_entropy
    )
    structure, peaks = StepStructure(asked, 0, 2), PeakPrediction(asked)
    norms = [key for key in layers_with_input(asked, 2) if isinstance(model.get_submodule(key), EXAMPLE_NORMS)]
    lossy = dict.fromkeys(layers_with_input(asked, 2), asked.method)
    masks, saved, inputs = structure.mask_bytes(2), structure.saved_inputs(2), structure.inputs
    for kept in ([], norms):
        methods = lossy | dict.fromkeys(kept, Exact())
        stored = [
            methods[each.key].predicted_bytes(inputs[each.key])
            + methods[each.key].predicted_state_bytes(inputs[each.key])
            + (0 if each.key in kept else masks[each.key])
            for each in saved
        ]
        memory = measure_step(asked, methods, 1)
        assert memory.saved_bytes == sum(stored) + structure.overhead_bytes(2, 1)
        assert peaks.peak_bytes(methods, 1) == pytest.approx(memory.peak_bytes, rel=0.05)
    assert norms
    assert all(masks[key] for key in norms)


def most(plan, model: nn.Module, example: tuple[Tensor, Tensor]) -> tuple[int, int]:
    """Saved and peak bytes of the largest micro-step of two batches, as the ledger measures them."""
    model = fedact.apply(copy.deepcopy(model), plan)
    if plan.method == "lance":
        calibrate(model, example[0])
    found = []
    for start in (*range(0, 8, plan.micro_batch), 0):
        part = tuple(each[start : start + plan.micro_batch].clone() for each in example)
        with measure_memory(model, inputs=part) as memory:
            add_gradient(model, *part, 8)
        assert memory.hidden_bytes == 0
        found.append((memory.saved_bytes, memory.peak_bytes))
    saved, peak = zip(*found, strict=True)
    return max(saved), max(peak)


@rotated(of=13, name=NETWORKS, method=METHODS, scope=["peak", "saved"])
def test_every_methods_plan_holds_its_budget(name, method, scope):
    model, example = network(name)
    whole = fedact.make_plan(model, None, example, "exact", layers=2, scope=scope)
    budget = (whole.peak_bytes if scope == "peak" else whole.saved_bytes) // 2
    plan = fedact.make_plan(model, budget, example, method, layers="auto", scope=scope)
    assert plan.status in ("ok", "head-only")
    assert most(plan, model, example)[scope == "peak"] <= budget
    assert (plan.tiles, plan.room_bytes) == (0, None)
    assert all(len(kept.shape) >= 2 and kept.shape[0] == plan.micro_batch for kept in plan.kept)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_plan_that_keeps_everything_has_autograds_gradient(name):
    model, (x, y) = network(name)
    budget = fedact.make_plan(model, None, (x, y), "exact", layers=2).peak_bytes // 2
    plan = fedact.make_plan(model, budget, (x, y), "exact", layers=2)
    assert plan.micro_batch < 8
    planned = fedact.apply(copy.deepcopy(model), plan)
    for part in zip(torch.split(x, plan.micro_batch), torch.split(y, plan.micro_batch), strict=True):
        add_gradient(planned, *part, len(y))
    F.cross_entropy(model(x), y).backward()
    plain = dict(model.named_parameters())
    for key, parameter in trained_parameters(planned).items():
        expected = plain[key].grad
        assert (parameter.grad - expected).norm() <= 1e-4 * expected.norm() + 1e-7


def test_inputs_of_layers_are_as_methods_see_them():
    model, (x, _) = network("tokens")
    found = layer_inputs(model, ["body.2", "head"], x)
    assert {key: tuple(value.shape) for key, value in found.items()} == {"body.2": (8, 128, 9), "head": (8, 160)}


def test_ranks_that_fit_no_saved_input_are_refused():
    model, example = network("tokens")
    with pytest.raises(ConfigError, match="other tensors than those of series or tokens"):
        fedact.make_plan(model, "1MB", example, "hosvd:ranks=1x2x2x2", layers=2)


def motion() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = TemporalResNet(classes=CLASSES, channels=6).eval()
    x = torch.randn(8, 6, 128, generator=torch.Generator().manual_seed(0)).cumsum(2) / 10
    return model, (x, torch.arange(8) % CLASSES)


def test_layers_that_keep_their_input_together_store_less_in_factors_than_as_it_is():
    """Each of two readers has factors of its own, which must be less than half of the input that both would save once."""
    model, example = motion()
    plans = {method: fedact.make_plan(model, "256KB", example, method=method, layers=8) for method in ("exact", "hosvd")}
    assert plans["hosvd"].micro_batch == plans["exact"].micro_batch == 1
    assert plans["hosvd"].saved_bytes <= plans["exact"].saved_bytes
    shared = {each.name: each for each in plans["hosvd"].kept if each.name in ("blocks.3.conv1", "blocks.3.shortcut.0")}
    assert all(each.method.startswith("hosvd") for each in shared.values())
    assert sum(each.cap_bytes for each in shared.values()) < 4 * prod(shared["blocks.3.conv1"].shape)


def test_a_peak_that_grows_with_what_is_stored_leaves_more_than_the_smallest_methods():
    model, example = motion()
    plan = fedact.make_plan(model, "256KB", example, method="transform", layers=8)
    assert (plan.status, plan.layers) == ("ok", 8)
    assert plan.peak_bytes <= 256_000
    assert all(float(each.method.split("bits=")[1].split(",")[0]) > 0.1 for each in plan.kept if "bits=" in each.method)


@pytest.mark.parametrize(("name", "counted"), [("vit", "layers"), ("swin", "layers"), ("series", "convolutions")])
def test_a_plan_says_what_its_layers_are(name, counted):
    model, example = network(name)
    plan = fedact.make_plan(model, "2MB", example, method="exact", layers=1)
    assert plan.counted == counted
    figure = plans_against_budget("a title", {"exact": [plan]}, [200_000])
    assert f"trained {counted}" in {axes.get_ylabel() for axes in figure.axes}


class WholeGradient(Quantize):
    """As a method of somebody's own may do it: the weight gradient is a new tensor, whatever there is."""

    def weight_gradient(self, compressed, grad_output, weight, operation):
        return operation.weight_gradient(self.reconstruct(compressed), grad_output, weight)


@pytest.mark.parametrize(
    "method", [*map(make_method, ("quantize:bits=4", "exact", "transform:bits=1", "hosvd:ranks=2x8x2")), WholeGradient()]
)
def test_a_large_weights_gradient_is_predicted_as_the_method_makes_it(method):
    """Beside few tokens it is most of the peak where a method makes a new one, nothing where it adds to the old."""
    model = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 256), nn.Flatten(), nn.Linear(512, CLASSES)).eval()
    x = torch.randn(4, 2, 256, generator=torch.Generator().manual_seed(0))
    problem = make_problem(model, (x, torch.arange(4)), method=method, budget=None, scope="peak", loss=F.cross_entropy)
    inputs = problem.inputs(problem.trained(2), 1)
    methods = {key: method.for_dimensions(inputs[key].dim()) for key in layers_with_input(problem, 2)}
    measured, weight = measure_step(problem, methods, 2).peak_bytes, model[2].weight
    assert PeakPrediction(problem).peak_bytes(methods, 2) == pytest.approx(measured, rel=0.02)
    assert (measured > weight.nbytes) == isinstance(method, WholeGradient)
