"""Methods with a state, step after step: what stays, what is counted, what is random."""

import numpy as np
import pytest
import torch
from torch import Tensor

from fedact.compression import make_method
from fedact.compression.lowrank.algebra import unfold
from fedact.compression.lowrank.asi import subspace_step
from fedact.laws import LAWS
from fedact.laws.cases import StepsCase
from fedact.laws.inputs import relative_error
from fedact.laws.steps import steps
from fedact.measure.memory import stored_bytes

FIXED = ["asi:ranks=2x3x2x2", "asi:ranks=9x9x9x9", "lance:ranks=3x2x2", "lance:ranks=9x9x9", "quantize:bits=4"]
BY_VARIANCE = ["asi:variance=0.8", "asi:variance=0.9,max_ranks=3x3x3x3", "lance:variance=0.8"]


def inputs(kind: str = "gaussian", batches: tuple[int, ...] = StepsCase().batches) -> list[Tensor]:
    """A last batch is smaller, and a first one may be: what a state bounds must hold for larger ones too."""
    return [*StepsCase(batches=batches, kind=kind).inputs]


def span(basis: Tensor) -> np.ndarray:
    return (basis.double() @ basis.double().T).numpy()


def leading(x: Tensor, mode: int, rank: int) -> np.ndarray:
    left = np.linalg.svd(unfold(x.double(), mode).numpy())[0][:, :rank]
    return left @ left.T


@pytest.mark.parametrize("kind", ["gaussian", "zeros", "constant"])
@pytest.mark.parametrize("text", FIXED)
def test_predicted_bytes_are_those_stored_at_every_step(text, kind):
    assert make_method(text).fixed_size
    LAWS["steps"].check(make_method(text), StepsCase(kind=kind))


@pytest.mark.parametrize("text", BY_VARIANCE)
def test_ranks_found_on_the_first_batch_stay(text):
    # The first batch asks for far fewer ranks than those after it.
    tensors = [*inputs("decaying", (4,)), *inputs()]
    method = make_method(text)
    (fixed,) = method.levels(tensors[0]).values()
    for x, (stored, _, state) in zip(tensors, steps(method, tensors), strict=True):
        assert stored_bytes(stored) == fixed.predicted_bytes(x) <= method.predicted_bytes(x.shape)
        assert stored_bytes(state.tensors) == fixed.predicted_state_bytes(x) <= method.predicted_state_bytes(x.shape)


@pytest.mark.parametrize("text", BY_VARIANCE)
def test_a_state_of_another_size_starts_anew_and_its_ranks_stay_too(text):
    method, (x,) = make_method(text), inputs(batches=(4,))
    (narrow,) = steps(method, inputs("decaying", (4,)))
    wide = torch.cat([x, x.flip(0)], 1) + 1
    first = method.compress(wide, narrow.state)
    second = method.compress(wide, first.state)
    fresh = method.compress(wide)
    assert first.tensors[0].shape == second.tensors[0].shape == fresh.tensors[0].shape


@pytest.mark.parametrize("name", ["asi", "lance"])
def test_caps_bind_a_state_that_came_with_larger_ranks(name):
    (x,) = inputs(batches=(4,))
    caps = "2x2x2x2" if name == "asi" else "2x2x2"
    state = make_method(f"{name}:variance=1.0").compress(x).state
    method = make_method(f"{name}:max_ranks={caps}")
    stored, _, following = method.compress(x, state)
    assert stored_bytes(stored) <= method.predicted_bytes(x.shape)
    assert stored_bytes(following.tensors) <= method.predicted_state_bytes(x.shape)


@pytest.mark.parametrize("law", ["state", "batch_sizes", "later_nan", "seed"])
@pytest.mark.parametrize("text", [*FIXED, *BY_VARIANCE, "quantize"])
def test_laws_of_a_state(text, law):
    LAWS[law].check(make_method(text), StepsCase())


def test_subspace_steps_on_one_input_converge_to_its_leading_subspaces():
    method = make_method("asi:ranks=4x3x2x2")
    start, x = inputs(batches=(4, 4))
    x = x * torch.tensor([3.0, 3.0, 3.0, 1.0, 1.0, 1.0])[:, None, None]
    x[..., 2:, :] *= 0.3
    x[..., 2:] *= 0.3
    last = steps(method, [start, *[x] * 40])[-1].state.tensors
    for mode, (basis, rank) in enumerate(zip(last, (3, 2, 2), strict=True), 1):
        assert np.allclose(span(basis), leading(x, mode, rank), atol=1e-4)


def test_one_subspace_step_is_the_image_of_the_last_basis():
    (x,) = inputs(batches=(4,))
    last = torch.linalg.qr(torch.randn(6, 2, generator=torch.Generator().manual_seed(1))).Q
    unfolded = unfold(x.double(), 1).numpy()
    image = np.linalg.svd(unfolded @ unfolded.T @ last.double().numpy(), full_matrices=False)[0]
    found = subspace_step(x, last, 1)
    assert np.allclose(span(found), image @ image.T, atol=1e-5)
    assert torch.allclose(found.T @ found, torch.eye(2), atol=1e-5)


@pytest.mark.parametrize("kind", ["zeros", "constant"])
def test_a_batch_that_says_nothing_does_not_blind_the_steps_after_it(kind):
    # The first channels are dead, as after many a ReLU: a basis of theirs would see nothing for ever.
    method, (x,) = make_method("asi:ranks=4x3x5x4"), inputs(batches=(4,))
    x[:, :3] = 0
    *_, found = steps(method, [x, *inputs(kind, (4,)), x, x])
    assert relative_error(method.reconstruct(found), x) < 1e-4


@pytest.mark.parametrize("text", ["lance:variance=0.8", "lance:ranks=3x2x2"])
def test_lance_never_changes_its_bases_and_projects_onto_them(text):
    method, tensors = make_method(text), inputs()
    first, *later = steps(method, tensors)
    for x, found in zip(tensors[1:], later, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(first.state.tensors, found.state.tensors, strict=True))
        expected = np.einsum("bchw,cC,hH,wW->bCHW", x.numpy(), *(span(basis) for basis in first.state.tensors))
        assert np.allclose(method.reconstruct(found).numpy(), expected, atol=1e-5)


def assert_unbiased(rebuilt: Tensor, x: Tensor, bits: int) -> None:
    # Values lie between 0 and 6; an element deviates by at most half a step. Six standard errors, of each and of all.
    deviation, count = 1.02 * 6 / (2**bits - 1) / 2, len(rebuilt)
    error = rebuilt.double().mean(0) - x.double()
    assert error.abs().max() <= 6 * deviation / count**0.5
    assert error.mean().abs() <= 6 * deviation / (count * x.numel()) ** 0.5


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_quantization_is_unbiased_over_seeds(bits):
    method, (x,) = make_method(f"quantize:bits={bits},group=32"), inputs("relu6_like", (2,))
    rebuilt = torch.stack([method.reconstruct(method.compress(x, method.start(seed))) for seed in range(1500)])
    assert_unbiased(rebuilt, x, bits)


def test_quantization_is_unbiased_over_steps_with_new_noise_at_each():
    method, (x,) = make_method("quantize:bits=2,group=32"), inputs("relu6_like", (2,))
    found = steps(method, [x] * 1000)
    assert len({one.tensors[0].numpy().tobytes() for one in found}) == 1000
    assert_unbiased(torch.stack([method.reconstruct(one) for one in found]), x, bits=2)


def test_quantization_has_the_same_bits_for_the_same_seed_alone():
    method, tensors = make_method("quantize"), inputs()
    first, again, other = (steps(method, tensors, seed) for seed in (7, 7, 8))
    for one, same, different in zip(first, again, other, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.tensors, same.tensors, strict=True))
        assert not torch.equal(one.tensors[0], different.tensors[0])
