"""In streams a block's gradients are those of its narrow input as the method keeps it: errors say so, for any method."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import fedact
from fedact.compression import choose_method, make_method
from fedact.nn.surgery import install
from fedact.planner.allocation import ByteAllocation
from fedact.planner.example_check import fixed_randomness
from fedact.planner.gradient_errors import GradientErrors, relative_error
from fedact.planner.problem import make_problem
from fedact.planner.slowdown import SlowdownLimit
from fedact.planner.step_error import step_error
from fedact.planner.step_structure import layers_with_input
from tests.support.inverted_residuals import InvertedResidual, batch, gradients, network, plain_gradients

ROOM = 1500
BLOCK = 3
"""The block whose input is kept with loss."""


def setting(activation="relu6"):
    torch.manual_seed(0)
    blocks = (
        InvertedResidual(8, 0, 8),
        InvertedResidual(8, 24, 8),
        InvertedResidual(8, 24, 12, stride=2, activation=activation),
    )
    return network(*blocks, stem=8, out=12), batch(4, 24, torch.float32)


def problem(model, example, method, **given):
    given = {"budget": 10**6, "scope": "peak", "loss": F.cross_entropy, **given}
    return replace(make_problem(model, example, method=choose_method(method), **given), room=ROOM)


@pytest.mark.parametrize("activation", ["relu6", "hardswish", "none"])
@pytest.mark.parametrize("method", ["hosvd", "transform"])
def test_a_table_says_what_autograd_says_of_a_blocks_kept_input(method, activation):
    model, example = setting(activation)
    for depth in (1, 2, 3, 6):
        with fixed_randomness(torch.device("cpu")):
            asked = problem(model, example, method)
            allocation = ByteAllocation(asked, depth, SlowdownLimit(asked, None))
            profile = allocation.profiles.of(allocation.families[0], depth, 4)
            key = f"{BLOCK}.conv.0"
            ladder = profile.ladders[key][1::3]
            table = profile.steps.table(0)
            found = table.errors({key: ladder}, {key: None}, {})[key]
        for level, errors in zip(ladder, found, strict=True):
            weights, outputs = by_autograd(model, example, level)
            trained = [name for name in asked.trained(depth) if name.startswith(f"{BLOCK}.")]
            assert errors.weights == pytest.approx({name: weights[name] for name in trained}, rel=1e-3, abs=1e-7)
            assert errors.outputs.keys() <= outputs.keys()
            for name in outputs.keys() & set(trained):
                assert errors.outputs.get(name, 0.0) == pytest.approx(outputs[name], rel=1e-3, abs=1e-7)


def by_autograd(model, example, method):
    """Return the errors of a block's weight and output gradients, by layer, each with what comes after the layer exact."""
    model, (x, y) = fedact.restore(model).eval(), example
    tensors, gradients_of = {}, {}

    def note(name):
        def hook(module, args, output):
            tensors[name] = output
            output.retain_grad()

        return hook

    layers = dict(model[BLOCK].conv.named_children())
    handles = [module.register_forward_hook(note(name)) for name, module in layers.items()]
    model.requires_grad_(True)
    h = model[:BLOCK](x)
    F.cross_entropy(model[BLOCK + 1 :](model[BLOCK](h)), y).backward()
    gradients_of = {name: tensor.grad for name, tensor in tensors.items()}
    for handle in handles:
        handle.remove()
    exact = {name: layer.weight.grad.clone() for name, layer in layers.items() if isinstance(layer, torch.nn.Conv2d)}
    model.zero_grad()
    kept = method.reconstruct(method.compress(h.detach(), method.start(0)))
    weights, outputs = {}, {}
    for name, layer in layers.items():
        if name in exact:
            (found,) = torch.autograd.grad(layer(kept), layer.weight, gradients_of[name])
            weights[f"{BLOCK}.conv.{name}"] = relative_error(found, exact[name])
        if name in ("0", "3"):
            z = layer(kept).detach().requires_grad_()
            norm, activation = layers[str(int(name) + 1)], layers[str(int(name) + 2)]
            (found,) = torch.autograd.grad(activation(norm(z)), z, gradients_of[str(int(name) + 2)])
            outputs[f"{BLOCK}.conv.{name}"] = relative_error(found, gradients_of[name])
        kept = layer(kept).detach()
    return weights, outputs


@pytest.mark.parametrize("method", ["hosvd:variance=0.8", "quantize:bits=4", "transform:bits=1", "asi:ranks=2x3x3x3"])
@pytest.mark.parametrize("depth", [2, 6])
def test_the_error_of_a_step_is_that_of_its_gradients(method, depth):
    model, (x, y) = setting()
    with fixed_randomness(torch.device("cpu")):
        asked = problem(model, (x, y), method)
        inputs = asked.inputs(asked.trained(depth), 1)
        codec = make_method(method)
        methods = {name: codec.for_dimensions(inputs[name].dim()) for name in layers_with_input(asked, depth)}
        found = step_error(asked, methods, 4)
    exact = plain_gradients(model, x, y, depth)
    lossy = gradients(fedact.compress(model, method, layers=depth, room=ROOM), x, y)
    errors = {name: relative_error(lossy[f"{name}.weight"], exact[f"{name}.weight"]) for name in asked.trained(depth)}
    fedact.restore(model)
    assert max(errors.values()) > 1e-6
    assert found.error == pytest.approx(sum(errors.values()), rel=1e-3)


def test_without_a_table_errors_are_those_of_whole_steps():
    model, (x, y) = setting()
    # A hook changes the head's input, so that there is no table.
    model[-1].register_forward_pre_hook(lambda module, args: 2 * args[0])
    with fixed_randomness(torch.device("cpu")):
        asked = problem(model, (x, y), "transform")
        allocation = ByteAllocation(asked, 6, SlowdownLimit(asked, None))
        profile = allocation.profiles.of(allocation.families[0], 6, 4)
        assert profile.steps.table(0) is None
        level = profile.errors.level_count // 2
        found = GradientErrors.united(
            each for (each,) in profile.errors.of({key: [level] for key in profile.ladders}).values()
        )
    methods = profile.errors.methods(level)
    exact = plain_gradients(model, x, y, 6)
    lossy = gradients(install(model, methods, room=ROOM), x, y)
    fedact.restore(model)
    assert set(found.weights) == set(asked.trained(6))
    assert not found.outputs
    for name, error in found.weights.items():
        assert error == pytest.approx(relative_error(lossy[f"{name}.weight"], exact[f"{name}.weight"]), rel=0.02)
