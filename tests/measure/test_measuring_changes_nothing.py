"""A measured step leaves behind what the same step does unmeasured, to the bit; a plan leaves the model as it was."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils import spectral_norm as old_spectral_norm
from torch.nn.utils import weight_norm as old_weight_norm

import fedact
from fedact.measure.methods import compressed_models, measure_methods
from tests.support.networks import batch


class Doubled(nn.Module):
    """A parametrization that counts how often it is asked, and draws a number each time."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("asked", torch.zeros(()))

    def forward(self, weight: Tensor) -> Tensor:
        self.asked += 1
        return 2 * weight + 0 * torch.rand(())


def registered(layer: nn.Module) -> nn.Module:
    nn.utils.parametrize.register_parametrization(layer, "weight", Doubled())
    return layer


NORMS = {
    "spectral_norm": parametrizations.spectral_norm, "weight_norm": parametrizations.weight_norm,
    "orthogonal": parametrizations.orthogonal, "own": registered, "old spectral_norm": old_spectral_norm,
    "old weight_norm": old_weight_norm, "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.3),
    "none": lambda layer: layer,
}  # fmt: skip


def network(norm: str) -> nn.Module:
    torch.manual_seed(1)
    wrap = NORMS[norm]
    return nn.Sequential(
        wrap(nn.Conv2d(3, 6, 3, padding=1)), nn.BatchNorm2d(6), nn.ReLU(), wrap(nn.Conv2d(6, 6, 3)), nn.Dropout(0.3),
        nn.Flatten(), wrap(nn.Linear(216, 5)),
    )  # fmt: skip


def everything(model: nn.Module) -> dict[str, object]:
    """What a model is and has, and the next random number: values and the identity of what hangs on its modules."""
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    gradients = {f"{name} gradient": None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}
    flags = {f"{name} flags": (m.training, type(m).__name__, len(m._forward_hooks), len(m._forward_pre_hooks))
             for name, m in model.named_modules()}  # fmt: skip
    trained = {f"{name} trained": p.requires_grad for name, p in model.named_parameters()}
    hooks = {f"{name} hooks": len(p._post_accumulate_grad_hooks or ()) for name, p in model.named_parameters()}
    everywhere = len(nn.modules.module._global_forward_pre_hooks)
    return {**tensors, **gradients, **flags, **trained, **hooks, "everywhere": everywhere, "random": torch.get_rng_state()}


def assert_same(one: dict[str, object], other: dict[str, object]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        same = torch.equal(value, other[name]) if isinstance(value, Tensor) else value == other[name]
        assert same, name


def steps(model: nn.Module, measured: bool) -> dict[str, object]:
    x, y = batch(3)
    torch.manual_seed(5)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1, 0.9)
    for _ in range(2):
        if measured:
            with fedact.measure_memory(model, inputs=(x, y), optimizer=optimizer):
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
        else:
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    return everything(model)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norm", NORMS)
def test_a_measured_step_is_the_step(norm, training):
    assert_same(*(steps(network(norm).train(training), measured) for measured in (True, False)))


@pytest.mark.parametrize("method", ["vanilla", "exact", "hosvd:variance=0.9", "checkpoint", "quantize:bits=4"])
@pytest.mark.parametrize("norm", ["spectral_norm", "own", "none"])
@pytest.mark.filterwarnings("ignore:not compressed")
def test_a_measured_step_of_a_compressed_model_is_the_step(norm, method):
    models = [fedact.compress(network(norm), method, layers=1) for _ in range(2)]
    assert_same(*(steps(model, measured) for model, measured in zip(models, (True, False), strict=True)))


@pytest.mark.parametrize("method", ["hosvd", "exact", "vanilla", "auto"])
@pytest.mark.parametrize("norm", ["spectral_norm", "old spectral_norm", "own", "none"])
@pytest.mark.filterwarnings("ignore:not compressed")
def test_a_plan_leaves_the_model_as_it_was(norm, method):
    model = network(norm)
    reference = copy.deepcopy(model)
    torch.manual_seed(3)
    before = everything(model)
    plan = fedact.make_plan(model, "40KB", batch(4), method=method, layers=1)
    assert plan.status == "ok"
    assert_same(everything(model), before)
    assert_same({**everything(reference), "random": None}, {**before, "random": None})


@pytest.mark.filterwarnings("ignore:not compressed")
def test_measuring_methods_beside_each_other_leaves_the_model_and_its_copies_alone():
    model = network("spectral_norm")
    before = everything(model)
    names = ["exact", "hosvd:variance=0.9"]
    models = compressed_models(model, names, layers=1)
    measure_methods(models, compressed_models(model, ["vanilla"], layers=1)["vanilla"], batch(3), [batch(3)], ())
    assert_same(everything(model), {**before, "random": torch.get_rng_state()})


def test_an_exception_in_the_block_leaves_no_hook():
    model = network("spectral_norm")
    before = everything(model)
    with pytest.raises(ZeroDivisionError), fedact.measure_memory(model):
        1 / 0  # noqa: B018
    assert_same(everything(model), before)
