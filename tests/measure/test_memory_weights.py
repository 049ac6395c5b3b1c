"""Weights, buffers and gradients are no activation memory: whosever they are, and whatever storage they have by then."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

import fedact
from tests.support.networks import batch, measure, normed, packed_bytes, plain, train

X, Y = batch(3)


def rebind(model: nn.Module) -> None:
    for p in model.parameters():
        p.data = p.data - 0.1 * p.grad


def through_a_vector(model: nn.Module) -> None:
    vector_to_parameters(parameters_to_vector(model.parameters()), model.parameters())


def replace_gradients(model: nn.Module) -> None:
    for p in model.parameters():
        p.grad = p.grad + 1


def register_again(model: nn.Module) -> None:
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                setattr(module, name, nn.Parameter(parameter.detach() * 0.9))
        for name, buffer in list(module._buffers.items()):
            setattr(module, name, buffer + 0)


def swap_with_average(model: nn.Module) -> None:
    averages = [0.9 * p.detach() + 0.1 for p in model.parameters()]
    for p, average in zip(model.parameters(), averages, strict=True):
        p.data, average.data = average, p.data


def in_place(model: nn.Module) -> None:
    with torch.no_grad():
        for p in model.parameters():
            p -= 0.1 * p.grad


def drop_gradients(model: nn.Module) -> None:
    model.zero_grad(set_to_none=True)


CHANGES = [rebind, through_a_vector, replace_gradients, register_again, swap_with_average, in_place, drop_gradients]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("build", [plain, normed])
def test_what_is_assigned_to_a_model_between_two_steps_is_not_saved(build, change):
    model = build()
    expected = packed_bytes(model, X, Y)

    def two_steps() -> None:
        for _ in range(2):
            train(model, X, Y)
            change(model)

    for _ in range(2):
        memory = measure(model, two_steps, (X, Y))
        assert (memory.saved_bytes, memory.hidden_bytes) == (expected, 0)
        model.zero_grad()


def test_a_weight_that_is_assigned_is_alive_beside_the_old_one_while_it_is_computed_and_not_later():
    model = nn.Linear(1000, 1, bias=False)
    x = torch.zeros(1, 1000)
    plainly = measure(model, lambda: model(x).sum().backward(), x).peak_bytes

    def steps() -> None:
        for _ in range(3):
            model(x).sum().backward()
            model.weight.data = model.weight.data - model.weight.grad
            model.zero_grad()

    assert plainly <= measure(model, steps, x).peak_bytes <= 2 * 4000 + 100


class OwnMean(nn.Module):
    """Keeps a running mean in a buffer that it assigns anew in every forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(50))

    def forward(self, x: Tensor) -> Tensor:
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return x - self.mean


def test_a_buffer_that_a_forward_pass_assigns_is_not_saved():
    model, x = nn.Sequential(nn.Linear(4, 50), OwnMean()), torch.randn(3, 4)
    memory = measure(model, lambda: [model(x).sum().backward() for _ in range(3)], x)
    assert (memory.saved_bytes, memory.hidden_bytes) == (0, 0)


# Others' weights -----------------------------------------------------------------------------------------------------------


class Learned(nn.Module):
    """A loss with a parameter and a buffer, both saved."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(500))
        self.register_buffer("shift", torch.rand(500))

    def forward(self, x: Tensor) -> Tensor:
        return (x @ (self.scale * self.shift)[None].expand(x.shape[1], -1)).sum()


def test_a_criterions_weights_are_not_saved_and_what_it_computes_is():
    model, x, criterion = nn.Linear(4, 6), torch.randn(2, 4), Learned()
    memory = measure(model, lambda: criterion(model(x)).backward(), x)
    # The output, once, and the product of its two tensors.
    assert memory.saved_bytes == 2 * 6 * 4 + 500 * 4
    assert memory.hidden_bytes == 0


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("assigned", [False, True])
def test_a_second_networks_weights_are_not_saved(frozen, assigned):
    """A critic or a teacher, with batch norm: only what it saves of its input is."""
    generator, critic = nn.Sequential(nn.Linear(5, 192), nn.Unflatten(1, (3, 8, 8))), normed().requires_grad_(not frozen)
    x = torch.randn(3, 5)

    def step() -> None:
        critic(generator(x)).sum().backward()
        if assigned:
            with torch.no_grad():
                for p in critic.parameters():
                    p.data = p.data - 0.1

    torch.manual_seed(0)
    memory = measure(generator, lambda: [step() for _ in range(2)], x)
    given = [x, *generator.parameters(), *generator.buffers(), *critic.parameters(), *critic.buffers()]
    assert memory.saved_bytes == saved_by(lambda: critic(generator(x)).sum(), given)
    assert memory.hidden_bytes == 0


def saved_by(forward, given) -> int:
    """What autograd packs, by storage, but what was given."""
    packed = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t.detach()) or t.detach(), lambda t: t):
        loss = forward()
    known = {t.untyped_storage().data_ptr() for t in given}
    sizes = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in packed}
    del loss
    return sum(size for place, size in sizes.items() if place not in known)


def test_a_functions_own_leaves_from_before_the_block_are_weights_and_those_made_in_it_are_not():
    w, x, model = torch.randn(7, 7, requires_grad=True), torch.randn(2, 7), nn.Identity()
    before = measure(model, lambda: F.linear(x, w).sum().backward(), x)
    assert before.saved_bytes == 0

    def within() -> None:
        features = (x * 2).detach().requires_grad_()
        F.linear(features, w).sum().backward()

    assert measure(model, within, x).saved_bytes == x.nbytes


# Sparse gradients ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 3])
def test_a_sparse_gradient_is_a_gradient(steps):
    words = torch.tensor([1, 3])
    model = nn.Sequential(nn.Embedding(10, 2, sparse=True), nn.Linear(2, 1))
    dense = copy.deepcopy(model)
    dense[0].sparse = False

    def run(which) -> fedact.measure.memory.Memory:
        return measure(which, lambda: [which(words).sum().backward() for _ in range(steps)], words)

    memory, oracle = run(model), run(dense)
    assert memory.saved_bytes == oracle.saved_bytes == 2 * 2 * 4
    assert memory.hidden_bytes == 0
    assert torch.equal(model[0].weight.grad.to_dense(), dense[0].weight.grad)


def test_a_saved_sparse_tensor_is_its_indices_and_values():
    model, x = nn.Linear(3, 4), torch.randn(2, 3)
    matrix = torch.eye(5, 2).to_sparse()

    def step() -> None:
        (torch.sparse.mm(matrix * 2, model(x)) ** 2).sum().backward()

    # Three tensors: the sparse factor (two entries), and the square's base.
    assert measure(model, step, x).saved_bytes == 2 * (2 * 8 + 4) + 5 * 4 * 4


# Paper bytes ---------------------------------------------------------------------------------------------------------------

WEIGHTS = {"plain": lambda layer: layer, "spectral": spectral_norm, "weight norm": weight_norm}


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("trained", [True, False])
def test_paper_bytes_are_the_inputs_alone_whatever_the_weight_is_computed_from(weight, autocast, trained):
    # Weight and input have the same shape, so that no shape tells them apart.
    layer = WEIGHTS[weight](nn.Conv2d(4, 4, 3, padding=1))
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_(trained or name == "bias")
    x = torch.ones(4, 4, 3, 3, requires_grad=True)
    with fedact.measure_memory(layer) as memory, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        layer(x * 1).sum().backward()
    assert memory.paper_bytes == (4 * x.numel() if trained else 0)


@pytest.mark.parametrize("padding", [{"padding": "same"}, {"padding": 1, "padding_mode": "circular"}])
def test_paper_bytes_of_a_padded_input(padding):
    layer, x = nn.Conv2d(2, 3, 3, **padding), torch.rand(1, 2, 5, 5)
    with fedact.measure_memory(layer) as memory:
        layer(x * 1).sum().backward()
    # What PyTorch pads by itself, it keeps padded.
    assert memory.paper_bytes == 4 * 2 * (49 if "padding_mode" in padding else 25)
