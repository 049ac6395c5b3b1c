"""Attention that keeps no scores: autograd's own gradients, from fewer bytes."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import fedact
from fedact.compression import make_method
from fedact.config.errors import ConfigError
from fedact.measure.equal_cosine import capture
from fedact.models.tasks import task_loss
from fedact.nn.layers import LeanAttention, LeanMultiheadAttention
from fedact.nn.streams.rematerialization import step_rematerializations
from fedact.nn.surgery import body_layers, head, install, restore, trained_parameters
from fedact.planner.error_table import measure_table
from fedact.planner.saved_inputs import saved_inputs
from fedact.planner.sensitivity import measure_sensitivity
from tests.support.networks import measure, train
from tests.support.transformers import NETWORKS, batch, randomized, swin, timm_vit, vit


def compressed(model: nn.Module, method: str, layers: int) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return fedact.compress(copy.deepcopy(model), method, layers=layers)


def gradients(model: nn.Module, size: int, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    train(model, *batch(size, dtype=dtype))
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def check_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for key, gradient in found.items():
        torch.testing.assert_close(gradient, expected[key], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", NETWORKS)
def test_exact_gradients_are_autograds_at_every_depth(name):
    make, size = NETWORKS[name]
    model = make().double()
    expected, names = gradients(copy.deepcopy(model), size), body_layers(model)
    for layers in (1, 2, 3, 4, len(names)):
        ours = compressed(model, "exact", layers)
        found = gradients(ours, size)
        assert set(found) == set(trained_parameters(ours))
        check_same(found, expected)
        assert list(ours.state_dict()) == list(model.state_dict())
        assert [type(one) for one in fedact.restore(ours).modules()] == [type(one) for one in model.modules()]


@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_is_left_that_autograd_keeps(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fedact.compress(NETWORKS[name][0](), "hosvd:variance=0.9", layers=8)


def test_layers_count_the_two_projections_of_attention():
    block = "encoder.layers.encoder_layer_1"
    assert body_layers(vit())[-4:] == [
        f"{block}.self_attention", f"{block}.self_attention.out_proj", f"{block}.mlp.0", f"{block}.mlp.3"
    ]  # fmt: skip
    assert len(body_layers(vit())) == 1 + 2 * 4
    block = "features.3.0"
    assert body_layers(swin())[-4:] == [f"{block}.attn.qkv", f"{block}.attn.proj", f"{block}.mlp.0", f"{block}.mlp.3"]
    assert not [name for name in body_layers(swin(2)) if "cpb_mlp" in name]
    assert head(swin(2)) == ["head"]


def test_training_an_input_projection_leaves_the_output_projection_frozen():
    model, name = vit(), "encoder.layers.encoder_layer_1.self_attention"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        install(model, {name: make_method("exact"), "heads.head": make_method("exact")})
    assert set(trained_parameters(model)) == {
        f"{name}.in_proj_weight", f"{name}.in_proj_bias", "heads.head.weight", "heads.head.bias"
    }  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_no_scores_are_kept_and_the_peak_is_below_plain_trainings(name):
    make, size = NETWORKS[name]
    model, layers = make(), len(body_layers(make()))
    memories = {}
    for method in ("vanilla", "exact"):
        ours = compressed(model, method, layers)
        memories[method] = measure(ours, lambda m=ours: train(m, *batch(size, 8)), batch(size, 8))
    assert memories["exact"].saved_bytes < 0.85 * memories["vanilla"].saved_bytes
    assert memories["exact"].peak_bytes < memories["vanilla"].peak_bytes


def test_what_is_kept_does_not_grow_with_the_square_of_the_tokens():
    def kept(tokens: int, method: str) -> int:
        x = torch.randn(2, tokens, 8)
        model = nn.Sequential(nn.Linear(8, 8), Attention(8, 2), nn.Linear(8, 8), nn.Flatten(), nn.Linear(8 * tokens, 2))
        model = fedact.compress(model, method, layers=4)
        return measure(model, lambda: train(model, x, torch.tensor([0, 1])), x).saved_bytes

    assert kept(128, "exact") < 2.1 * kept(64, "exact")
    assert kept(128, "exact") < 0.7 * kept(128, "vanilla")


class Attention(nn.Module):
    """Self-attention as torchvision's ViT calls it."""

    def __init__(self, width: int, heads: int, **options) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, **{"batch_first": True} | options)
        randomized(self.attention)

    def forward(self, x, **masks):
        return self.attention(x, x, x, need_weights=False, **masks)[0]


def both(model: nn.Module, x: torch.Tensor, trained: bool, **masks) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return the output and the gradients of a plain model and of a lean one, trained or on the gradient path."""

    def run(model, parameters):
        given = x.clone().requires_grad_()
        y = model(given, **masks)
        wanted = [given, *parameters]
        return [y, *torch.autograd.grad(y, wanted, torch.ones_like(y).cumsum(-1))]

    plain, lean = copy.deepcopy(model), model
    names = {"attention": make_method("exact"), "attention.out_proj": make_method("exact")} if trained else {}
    install(lean, names)
    assert isinstance(lean.attention, LeanMultiheadAttention)
    chosen = [name for name, parameter in lean.named_parameters() if parameter.requires_grad]
    return run(plain, [plain.get_parameter(name) for name in chosen]), run(
        lean, [lean.get_parameter(name) for name in chosen]
    )


@settings(deadline=None, max_examples=25)
@given(
    heads=st.integers(1, 4), channels=st.integers(1, 5), tokens=st.integers(1, 9), examples=st.integers(1, 5),
    batch_first=st.booleans(), bias=st.booleans(), trained=st.booleans(), seed=st.integers(0, 3),
    masked=st.sampled_from(["", "attn", "attn of heads", "causal", "padding", "both", "float"]),
)  # fmt: skip
def test_attention_alone_is_pytorchs(heads, channels, tokens, examples, batch_first, bias, trained, seed, masked):
    torch.manual_seed(seed)
    model = Attention(heads * channels, heads, batch_first=batch_first, bias=bias).double()
    x = torch.randn(*((examples, tokens) if batch_first else (tokens, examples)), heads * channels, dtype=torch.float64)
    masks = {}
    if masked in ("attn", "both"):
        masks["attn_mask"] = torch.rand(tokens, tokens) < 0.3
        masks["attn_mask"].fill_diagonal_(False)
    if masked == "attn of heads":
        masks["attn_mask"] = (torch.rand(examples * heads, tokens, tokens) < 0.3) & ~torch.eye(tokens, dtype=torch.bool)
    if masked == "float":
        masks["attn_mask"] = torch.randn(tokens, tokens, dtype=torch.float64)
    if masked == "causal":
        mask = nn.Transformer.generate_square_subsequent_mask(tokens, dtype=torch.float64)
        masks = {"attn_mask": mask, "is_causal": True}
    if masked == "padding":
        masks["key_padding_mask"] = torch.arange(tokens).expand(examples, -1) >= 1 + torch.arange(examples)[:, None]
    expected, found = both(model, x, trained, **masks)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


def test_one_sequence_without_a_batch():
    for trained in (True, False):
        expected, found = both(Attention(6, 2).double(), torch.randn(5, 6, dtype=torch.float64), trained)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs)


def test_groups_of_few_examples_have_the_same_gradient(monkeypatch):
    monkeypatch.setattr("fedact.nn.layers.attention.FEW", 1)
    for masks in ({}, {"attn_mask": torch.randn(5, 5).double()}, {"key_padding_mask": torch.arange(5).expand(7, -1) > 3}):
        expected, found = both(Attention(6, 2).double(), torch.randn(7, 5, 6, dtype=torch.float64), True, **masks)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs)
    make, size = NETWORKS["swin"]
    model = make().double()
    expected = gradients(copy.deepcopy(model), size)
    check_same(gradients(compressed(model, "exact", 14), size), expected)


class Crossed(nn.Module):
    def __init__(self, **options) -> None:
        super().__init__()
        self.first, self.attention = nn.Linear(6, 6), nn.MultiheadAttention(6, 2, batch_first=True, **options)
        self.last = nn.Linear(6, 2)

    def forward(self, x):
        y = self.first(x)
        return self.last(self.attention(y, y.flip(1), y.flip(1))[0]).mean(1)


@pytest.mark.parametrize("options", [{}, {"add_bias_kv": True}, {"kdim": 6, "vdim": 6}], ids=str)
def test_what_is_not_self_attention_is_plain_and_named(options):
    model = randomized(Crossed(**options)).double()
    x, y = torch.randn(4, 3, 6, dtype=torch.float64), torch.tensor([0, 1, 1, 0])
    plain = copy.deepcopy(model)
    train(plain, x, y)
    fedact.compress(model, "exact", layers=3)
    with pytest.warns(UserWarning, match="MultiheadAttention, called with other keys or values than queries"):
        train(model, x, y)
    for name, parameter in trained_parameters(model).items():
        torch.testing.assert_close(parameter.grad, plain.get_parameter(name).grad)


def test_timms_attention_with_norms_of_queries_stays_plain():
    model = timm_vit(qk_norm=True)
    expected = gradients(copy.deepcopy(model).double(), 32)
    ours = compressed(model.double(), "exact", 9)
    assert not [one for one in ours.modules() if isinstance(one, LeanAttention)]
    check_same(gradients(ours, 32), expected)


def test_dropout_inside_attention_is_off_under_every_method():
    for method in ("vanilla", "exact", "hosvd:variance=0.9"):
        model = compressed(vit(dropout=0.5, attention_dropout=0.5), method, 4).train()
        x, _ = batch(32)
        assert torch.equal(model(x), model(x))


@pytest.mark.parametrize("update", ["bias", "lora:rank=2"])
@pytest.mark.parametrize("name", ["vit", "swin", "swin v2", "timm's vit"])
def test_updates_of_a_part_have_plain_gradients(name, update):
    make, size = NETWORKS[name]
    found = []
    for method in ("vanilla", "exact"):
        model = fedact.compress(make().double(), method, layers=6, update=update)
        for key, parameter in model.named_parameters():
            if key.endswith("lora_b"):
                nn.init.constant_(parameter, 0.1)
        gradients(model, size)
        found.append({key: parameter.grad for key, parameter in trained_parameters(model).items()})
    assert found[0].keys() == found[1].keys()
    assert all(gradient is not None for gradient in found[0].values())
    for key, gradient in found[1].items():
        torch.testing.assert_close(gradient, found[0][key], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", ["vit", "swin", "timm's vit"])
def test_lossy_methods_make_the_scores_of_what_they_stored(name):
    make, size = NETWORKS[name]
    model = make()
    exact = gradients(compressed(model, "exact", 6), size, torch.float32)
    errors = []
    for variance in ("0.5", "0.9", "0.999999"):
        found = gradients(compressed(model, f"hosvd:variance={variance}", 6), size, torch.float32)
        errors.append(max(float((found[key] - exact[key]).norm() / exact[key].norm()) for key in exact))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-2 < errors[0]


def test_second_derivatives_are_those_of_plain_pytorch_or_refused():
    def second(model: nn.Module) -> list[torch.Tensor]:
        x = torch.linspace(-1, 1, 24, dtype=torch.float64).view(2, 3, 4).requires_grad_()
        weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
        first = torch.autograd.grad(model(x).square().sum(), [x, *weights], create_graph=True)
        return list(torch.autograd.grad(sum(one.square().sum() for one in first), [x, *weights]))

    model = Attention(4, 2).double()
    with sdpa_kernel(SDPBackend.MATH):
        expected = second(copy.deepcopy(model))
    names = ("attention", "attention.out_proj")
    install(model, {name: make_method("exact") for name in names})
    for ours, theirs in zip(second(model), expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    install(model, {name: make_method("hosvd:variance=0.9") for name in names})
    with pytest.raises(ConfigError, match="no second derivatives"):
        second(model)


@pytest.mark.parametrize("name", ["vit", "swin", "timm's swin"])
def test_autocast_computes_what_plain_pytorch_does(name):
    make, size = NETWORKS[name]
    model = make()
    plain, ours = compressed(model, "vanilla", 9), compressed(model, "exact", 9)
    found = []
    for one in (plain, ours):
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(one(batch(size)[0]), batch(size)[1])
        loss.backward()
        found.append(torch.cat([p.grad.flatten() for p in trained_parameters(one).values()]))
    assert float((found[0] - found[1]).norm()) < 0.05 * float(found[0].norm())


def test_a_step_under_a_plan_has_the_bytes_that_were_planned():
    for name, method in (("vit", "exact"), ("swin", "exact"), ("vit", "quantize:bits=8"), ("timm's vit", "exact")):
        make, size = NETWORKS[name]
        x, y = batch(size, 4)
        plan = fedact.make_plan(make(), "2MB", (x, y), method=method, layers=4, scope="saved")
        model = fedact.apply(make(), plan)
        assert measure(model, lambda m=model, a=x, b=y: train(m, a, b), (x, y)).saved_bytes == plan.saved_bytes


@pytest.mark.parametrize("name", ["vit", "swin", "timm's vit", "encoder"])
def test_the_bench_captures_the_projections_of_attention(name):
    make, size = NETWORKS[name]
    names = body_layers(make())[-4:]
    expected = gradients(make(), size, torch.float32)
    for layer in capture(make(), batch(size), names):
        key = next(key for key in expected if key.startswith(f"{layer.name}.") and key.endswith("weight"))
        torch.testing.assert_close(layer.exact.flatten(1), expected[key], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("batch_first", [True, False])
def test_the_error_table_says_of_attention_what_steps_say(batch_first):
    torch.manual_seed(0)
    model = Tagger(batch_first)
    x, y = torch.randn(4, 5, 8), torch.tensor([0, 1, 1, 0])
    names = ["attention", "attention.out_proj", "head"]
    levels = [dict.fromkeys(names, make_method(f"quantize:bits={bits}")) for bits in (2, 4, 8)]
    stepped = measure_sensitivity(model, (x, y), names, levels, task_loss)
    inputs = saved_inputs(restore(model), dict.fromkeys(names, make_method("exact")))
    derived = step_rematerializations(model, dict.fromkeys(names, make_method("exact")), set(names), False)
    table = measure_table(model, (x, y), names, inputs, derived, task_loss)
    found = table.errors({one.key: [make_method("quantize:bits=8")] for one in inputs}, dict.fromkeys(names), {})
    assert found["head"][0].weights["head"] == pytest.approx(stepped.levels[-1].weights["head"], rel=1e-3)
    assert found["attention"][0].weights["attention"] == pytest.approx(stepped.levels[-1].weights["attention"], rel=0.5)


class Tagger(nn.Module):
    """A mean over the tokens of attention, which may be called with tokens first."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=batch_first), nn.Linear(8, 2)

    def forward(self, x):
        x = x if self.batch_first else x.transpose(0, 1)
        y = self.attention(x, x, x, need_weights=False)[0]
        return self.head(y.mean(1 if self.batch_first else 0))
