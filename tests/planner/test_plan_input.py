"""Plans for odd models, examples and losses: each works, or is refused in one clear line."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fedact
from fedact.config.errors import ConfigError
from fedact.planner import expected_error
from tests.support import networks
from tests.support.planned import Net, batch, net, step
from tests.support.portions import rotated

METHODS = ["auto", "exact", "hosvd", "transform"]


def ones_like(label_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    x, y = batch(4)
    return x, y.to(label_dtype)


def with_a(value: float) -> tuple[Tensor, Tensor]:
    x, y = batch(4)
    x[3, 0, 0, 0] = value
    return x, y


EXAMPLES = [
    (lambda: (batch(4)[0][:0], batch(4)[1][:0]), "0 inputs and 0 labels"),
    (lambda: (batch(4)[0], batch(3)[1]), "4 inputs and 3 labels"),
    (lambda: (batch(1)[0][0, 0, 0, 0], batch(1)[1]), "no inputs and 1 labels"),
    (lambda: batch(4)[0], "pair of tensors"),
    (lambda: (batch(4)[0], ["a", "b", "c", "d"]), "pair of tensors"),
    (lambda: (*batch(4), 0), "pair of tensors"),
    (lambda: with_a(float("nan")), "NaN"),
    (lambda: with_a(float("-inf")), "infinity"),
    (lambda: (batch(4)[0][:, :2], batch(4)[1]), "model cannot be run.*2 channels"),
    (lambda: (batch(4)[0].double(), batch(4)[1]), "model cannot be run"),
    (lambda: (batch(4)[0].byte(), batch(4)[1]), "model cannot be run"),
    (lambda: (batch(4)[0], batch(4)[1] + torch.tensor([0, 0, 0, 9])), "loss cannot be taken.*out of bounds"),
    (lambda: ones_like(torch.float32), "loss cannot be taken"),
]  # fmt: skip


@pytest.mark.parametrize(("example", "words"), EXAMPLES)
def test_a_bad_example_is_refused_in_one_line(example, words):
    plan = fedact.make_plan(net(), 9_000, batch(4), "transform", 2, "saved")
    for refused in (
        lambda: fedact.make_plan(net(), 9_000, example(), "auto"),
        lambda: fedact.make_plan(net(), 9_000, example(), "exact", 1),
        lambda: expected_error(net(), plan, example()),
    ):
        with pytest.raises(ConfigError, match=words) as caught:
            refused()
        assert "\n" not in str(caught.value)


LOSSES = [
    (lambda scores, y: F.cross_entropy(scores, y, reduction="none"), r"one number with a gradient, not .*\(2,\)"),
    (lambda scores, y: F.cross_entropy(scores, y).detach(), "without one"),
    (lambda scores, y: float(F.cross_entropy(scores, y)), "a float"),
    (lambda scores: scores.sum(), "cannot be taken"),
]


@pytest.mark.parametrize(("loss", "words"), LOSSES)
def test_a_loss_that_is_none_is_refused(loss, words):
    with pytest.raises(ConfigError, match=words):
        fedact.make_plan(net(), 9_000, batch(4), "auto", loss=loss)


WORDS = [
    ({"layers": "3"}, "whole number or auto, not '3'"),
    ({"layers": "all"}, "not 'all'"),
    ({"layers": -1}, "at least 0"),
    ({"layers": 5}, "has 4 convolutions"),
    ({"layers": 1.0}, "not 1.0"),
    ({"layers": True}, "not True"),
    ({"layers": None}, "not None"),
    ({"scope": "both"}, "unknown scope 'both'"),
    ({"budget": -1}, "not a size"),
    ({"budget": 1.5}, "not 1.5"),
    ({"budget": "much"}, "not a size"),
    ({"max_slowdown": 0}, "above 0, not 0"),
    ({"max_slowdown": float("nan")}, "above 0, not nan"),
    ({"max_slowdown": "2"}, "above 0, not '2'"),
    ({"method": "autto"}, "unknown method"),
    ({"method": "auto:bits=2"}, "auto"),
]


@pytest.mark.parametrize(("given", "words"), WORDS)
def test_what_is_no_setting_is_refused(given, words):
    with pytest.raises(ConfigError, match=words):
        fedact.make_plan(**{"model": net(), "budget": 9_000, "example": batch(4)} | given)


class Broken(Net):
    def forward(self, x):
        return super().forward(x) / 0.0


class Untrainable(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.ReLU())


class UnusedAlone(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x):
        return x.flatten(1)


class Uncopyable(Net):
    def __deepcopy__(self, memo):
        raise TypeError("not this one")


@pytest.mark.parametrize("method", ["auto", "exact"])
@pytest.mark.parametrize(("model", "words"), [
    (Broken, "NaN or an infinity"), (Untrainable, "neither a convolution nor a linear layer"),
    (UnusedAlone, "calls none of the layers"), (Uncopyable, "cannot be copied: not this one"),
])  # fmt: skip
def test_a_model_that_no_plan_can_be_made_for_is_refused(method, model, words):
    with pytest.raises(ConfigError, match=words):
        fedact.make_plan(model(), 9_000, batch(4), method)


class Untraceable(Net):
    def forward(self, x):
        return super().forward(x * 2 if x.sum() > 0 else x)


class WithUnusedLayers(Net):
    """As torchvision's models with auxiliary heads, in eval mode."""

    def __init__(self):
        super().__init__()
        self.aux = nn.Conv2d(3, 3, 1)
        self.last, self.other = nn.Linear(4, 4), nn.Linear(2, 2)

    def forward(self, x):
        return self.last(super().forward(x))


class Smooth(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Hardswish(inplace=True), nn.Conv2d(6, 6, 3, groups=6), nn.SiLU(),
            nn.Conv2d(6, 8, 1), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4), nn.SiLU(),
        )  # fmt: skip


class Perceptron(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(192, 20), nn.ReLU(), nn.Linear(20, 4))


class FunctionalDropout(Net):
    def forward(self, x):
        return F.dropout(super().forward(x), 0.5, self.training)


def shared() -> nn.Module:
    return nn.Sequential(*networks.shared()[:-1], nn.Linear(256, 4))


class Residual(networks.Residual):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 4)


MODELS = [Untraceable, WithUnusedLayers, Smooth, Perceptron, FunctionalDropout, shared, Residual]


@rotated(2, model=MODELS, method=METHODS)
def test_an_odd_model_gets_a_plan_that_holds(model, method):
    torch.manual_seed(0)
    own = model().train()
    for budget, scope, train_norm in ((3_000, "saved", False), (3_000, "saved", True), (9_000, "peak", False)):
        plan = fedact.make_plan(own, budget, batch(4), method, "auto", scope, train_norm=train_norm)
        if plan.status == "skipped":
            assert plan.least_bytes > budget
            continue
        memory = step(fedact.apply(own, plan), *batch(plan.micro_batch, 1))
        fedact.restore(own)
        assert memory.saved_bytes <= plan.saved_bytes
        assert (memory.saved_bytes if scope == "saved" else memory.peak_bytes) <= budget
        assert memory.hidden_bytes == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", ["auto", "exact", "transform"])
def test_a_model_in_another_type_gets_a_plan_that_holds(dtype, method):
    x, y = batch(4)
    plan = fedact.make_plan(net().to(dtype), 5_000, (x.to(dtype), y), method, scope="saved")
    other, labels = batch(plan.micro_batch, 1)
    assert step(fedact.apply(net().to(dtype), plan), other.to(dtype), labels).saved_bytes == plan.saved_bytes <= 5_000


def test_unused_layers_are_no_part_of_a_plan():
    plan = fedact.make_plan(WithUnusedLayers(), None, batch(4), "auto", 2)
    assert {kept.name for kept in plan.kept} == {"right"}


@pytest.mark.parametrize("make", [
    lambda: (batch(4)[0].requires_grad_(), batch(4)[1]), lambda: (batch(8)[0][::2], batch(4)[1]),
    lambda: (batch(4)[0].to(memory_format=torch.channels_last), batch(4)[1]), lambda: [*batch(4)],
])  # fmt: skip
def test_how_the_example_lies_in_memory_does_not_matter(make):
    assert fedact.make_plan(net(), 6_000, make(), "auto", scope="saved").saved_bytes <= 6_000
    contiguous = make()[0].detach().contiguous(), make()[1]
    expected = fedact.make_plan(net(), 6_000, contiguous, "exact", scope="saved").saved_bytes
    assert fedact.make_plan(net(), 6_000, make(), "exact", scope="saved").saved_bytes == expected


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model", [net, FunctionalDropout])
def test_the_same_plan_twice_and_nothing_is_drawn_from_torchs_own_generator(method, model):
    torch.manual_seed(3)
    own, plans = model().train(), []
    for draw in (1, 2):
        torch.manual_seed(draw)
        before = torch.get_rng_state()
        plans.append(fedact.make_plan(own, 6_000, batch(5), method, scope="saved"))
        expected_error(own, plans[-1], batch(5, seed=1))
        assert torch.equal(torch.get_rng_state(), before)
    assert plans[0].to_json() == plans[1].to_json()


def test_a_plan_of_another_model_has_no_expected_error():
    plan = fedact.make_plan(net(), 6_000, batch(4), "transform", 2, "saved")
    with pytest.raises(ConfigError, match="which the model does not have"):
        expected_error(shared(), plan, batch(4))
