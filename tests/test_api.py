"""A compressed model in any training loop: copies, contexts, types, layouts, shared layers, seeds."""

import copy
import io
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fedact
from tests.support.laws import EVERY_SETTING, GENTLEST, relative_error
from tests.support.networks import shared
from tests.support.portions import rotated

every_setting = pytest.mark.parametrize("text", EVERY_SETTING)
Y = torch.tensor([0, 1, 2, 3])


def network(smooth: bool = False) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.SiLU() if smooth else nn.ReLU6(inplace=True),
        nn.Conv2d(6, 6, 3, padding=1, groups=3), nn.BatchNorm2d(6), nn.Hardswish() if smooth else nn.ReLU(),
        nn.Conv2d(6, 8, 1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 4),
    )  # fmt: skip


def compressed(text: str, smooth: bool = False, seed: int = 0) -> nn.Module:
    return fedact.compress(network(smooth), text, layers=3, train_norm=True, seed=seed)


def images(size: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(size, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def gradients(model: nn.Module, x: Tensor, y: Tensor = Y) -> dict[str, Tensor]:
    model.zero_grad()
    F.cross_entropy(model(x), y).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def states(model: nn.Module) -> list[Tensor]:
    return [tensor for module in model.modules() if hasattr(module, "codec") for tensor in module.state_tensors()]


@every_setting
def test_a_copy_made_in_the_middle_of_training_goes_the_same_way_alone(text):
    model = compressed(text)
    gradients(model, images())
    twin = copy.deepcopy(model)
    before = [tensor.clone() for tensor in states(twin)]
    ours = gradients(model, 2 * images(seed=1))
    assert all(torch.equal(a, b) for a, b in zip(before, states(twin), strict=True))
    assert equal(gradients(twin, 2 * images(seed=1)), ours)


@rotated(2, text=EVERY_SETTING, off=[torch.no_grad, torch.inference_mode])
def test_without_gradients_it_is_the_plain_model_and_no_state_moves(text, off):
    model, plain = compressed(text), network().eval()
    with off():
        assert torch.equal(model(images()), plain(images()))
    assert not states(model)
    assert torch.equal(model.eval()(images()), model.train()(images()))


def half_precision(model: nn.Module, inside: bool) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        y = model(images())
        loss = F.cross_entropy(y, Y)
        with torch.autocast("cpu", enabled=inside, dtype=torch.bfloat16):
            loss.backward()
    return y.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@rotated(2, text=EVERY_SETTING, smooth=[False, True])
def test_autocast_gives_the_plain_output_and_gradients_as_good_as_the_methods(text, smooth):
    inside = not smooth
    y, actual = half_precision(compressed(text, smooth), inside)
    expected_y, expected = half_precision(compressed("vanilla", smooth), inside)
    full = gradients(compressed(text, smooth), images())
    assert torch.equal(y, expected_y)
    for name, gradient in actual.items():
        own = relative_error(full[name], expected[name])
        assert relative_error(gradient, expected[name]) <= 2 * own + 0.05, name


@rotated(2, text=EVERY_SETTING, dtype=[torch.float64, torch.bfloat16])
def test_models_of_other_types_train(text, dtype):
    model, plain = compressed(text, smooth=True).to(dtype), network(smooth=True).eval().to(dtype)
    x = images().to(dtype)
    assert torch.equal(model(x), plain(x))
    assert all(gradient.dtype == dtype for gradient in gradients(model, x).values())


@pytest.mark.parametrize("text", ["exact", "checkpoint"])
def test_channels_last_images_and_weights_give_the_same_gradient(text):
    expected = gradients(compressed("vanilla"), images())
    model, x = (each.to(memory_format=torch.channels_last) for each in (compressed(text), images()))
    assert all(relative_error(g, expected[name]) < 1e-5 for name, g in gradients(model, x).items())


@pytest.mark.parametrize("text", [*GENTLEST.values(), "hosvd:ranks=1x2x2x2", "lance:ranks=2x2x2"])
def test_an_empty_batch_gives_no_gradient_and_no_error(text):
    model, x = compressed(text), images(0).requires_grad_()
    model(x).sum().backward()
    assert x.grad.shape == x.shape
    assert all(not p.grad.any() for p in model.parameters() if p.requires_grad)


@every_setting
def test_batches_of_any_size_follow_each_other(text):
    model = compressed(text)
    for size in (4, 1, 3, 4):
        assert all(torch.isfinite(g).all() for g in gradients(model, images(size), Y[:size]).values())


@every_setting
def test_a_kept_graph_gives_the_same_gradient_again(text):
    model = compressed(text, smooth=True)
    loss = F.cross_entropy(model(images()), Y)
    trained = [p for p in model.parameters() if p.requires_grad]
    first, second = (torch.autograd.grad(loss, trained, retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@every_setting
def test_a_gradient_of_some_inputs_alone_is_the_same(text):
    model, x = compressed(text), images().requires_grad_()
    loss = F.cross_entropy(model(x), Y)
    some = [x, next(p for p in model.parameters() if p.requires_grad)]
    both = torch.autograd.grad(loss, some, retain_graph=True)
    alone = [torch.autograd.grad(loss, [each], retain_graph=True)[0] for each in some]
    assert all(torch.equal(a, b) for a, b in zip(both, alone, strict=True))


@every_setting
def test_names_and_values_are_saved_loaded_and_restored(text):
    model = network()
    names, own = list(model.state_dict()), [set(vars(module)) for module in model.modules()]
    gradients(fedact.compress(model, text, layers=3, train_norm=True), images())
    torch.save(model.state_dict(), file := io.BytesIO())
    file.seek(0)
    network().load_state_dict(torch.load(file, weights_only=True))
    assert list(model.state_dict()) == names
    assert [set(vars(module)) for module in fedact.restore(model).modules()] == own


@pytest.mark.parametrize("text", ["exact", "checkpoint"])
def test_a_convolution_used_twice_gets_both_gradients(text):
    torch.manual_seed(0)
    model = shared()
    expected = gradients(fedact.compress(model, "vanilla", layers=2), images())
    actual = gradients(fedact.compress(model, text, layers=2), images())
    assert all(relative_error(actual[name], expected[name]) < 1e-5 for name in expected)


@pytest.mark.parametrize("seeds", [(0, 0), (0, 1)])
def test_a_seed_says_what_is_random(seeds):
    first, second = (gradients(compressed("quantize:bits=2", seed=seed), images()) for seed in seeds)
    assert equal(first, second) == (seeds[0] == seeds[1])


def test_compressing_leaves_the_global_generator_alone():
    class Noisy(nn.Sequential):
        def forward(self, x):
            return super().forward(x + torch.rand(1))

    model, before = Noisy(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)), torch.random.get_rng_state()
    fedact.compress(model, "exact", layers=1)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_model_that_cannot_be_copied_is_compressed():
    model = network()
    model.lock, model.seen = threading.Lock(), network()(images())
    assert gradients(fedact.compress(model, "exact", layers=2), images())


def test_a_class_with_words_of_fedacts_own_is_left_alone():
    class Plain(nn.Sequential):
        plain, segment, codec = True, 3, None

    model = Plain(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    assert type(fedact.restore(fedact.compress(model, "exact", layers=1))) is Plain
