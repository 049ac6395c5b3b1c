"""Plans: who gives way, that the bytes are true, and that no real step exceeds them."""

import copy
import dataclasses
import json

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fedact
from fedact.memory import Memory
from fedact.plans import Plan
from fedact.surgery import trained_parameters


class Net(nn.Module):
    """Batch norm, ReLU6, depthwise, and a residual connection where one tensor feeds two trained convolutions."""

    def __init__(self, padding_mode: str = "zeros") -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU6(inplace=True))
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False, padding_mode=padding_mode)
        self.norm, self.act = nn.BatchNorm2d(6), nn.ReLU6()
        self.left, self.right = nn.Conv2d(6, 8, 1), nn.Conv2d(6, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.act(self.norm(self.depthwise(x)))
        return self.head((self.left(x) + F.relu(self.right(x))).mean((2, 3)))


def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net().train()


def batch(size: int, seed: int = 0, rank: int | None = None) -> tuple[Tensor, Tensor]:
    """Return images, of a few patterns only where a rank is given, and labels."""
    generator = torch.Generator().manual_seed(seed)
    if rank is None:
        x = torch.randn(size, 3, 8, 8, generator=generator)
    else:
        patterns = torch.randn(rank, 192, generator=generator)
        x = (torch.randn(size, rank, generator=generator) @ patterns).view(size, 3, 8, 8)
    return x, torch.randint(0, 4, (size,), generator=generator)


def step(model: nn.Module, x: Tensor, y: Tensor) -> Memory:
    with fedact.measure_memory(model, inputs=(x, y)) as memory:
        F.cross_entropy(model(x), y).backward()
    return memory


def in_scope(memory: Memory, scope: str) -> int:
    return memory.saved_bytes if scope == "saved" else memory.peak_bytes


def plan_for(budget, size=8, method="exact", layers="auto", scope="saved", **data) -> Plan:
    return fedact.make_plan(net(), budget, batch(size, **data), method, layers, scope)


# The model -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("installed", [None, "exact"])
@pytest.mark.parametrize("budget", [None, "100KB", 10])
def test_the_model_is_left_as_it_is(training, installed, budget):
    model = net().train(training)
    if installed:
        fedact.compress(model, installed, layers=1)
    model.stem[0].weight.grad = torch.ones_like(model.stem[0].weight)
    model.stem[0].weight.requires_grad_(False)
    before = copy.deepcopy(model)
    fedact.make_plan(model, budget, batch(4), "hosvd")
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), before.state_dict().values(), strict=True))
    assert [type(m) for m in model.modules()] == [type(m) for m in before.modules()]
    assert [m.training for m in model.modules()] == [m.training for m in before.modules()]
    assert [set(vars(m)) for m in model.modules()] == [set(vars(m)) for m in before.modules()]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    for a, b in zip(model.parameters(), before.parameters(), strict=True):
        assert a.requires_grad == b.requires_grad
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert set(gradients) == {"stem.0.weight"}
    assert torch.equal(gradients["stem.0.weight"], torch.ones_like(model.stem[0].weight))


# Who gives way -------------------------------------------------------------------------------------------------------------


def rank_of(plan: Plan) -> tuple[int, int]:
    """Order plans by how much gave way: layers weigh more than the micro-batch."""
    return plan.layers, plan.micro_batch


@pytest.mark.parametrize("method", ["vanilla", "exact", "hosvd:variance=0.8", "hosvd"])
def test_the_micro_batch_gives_way_before_the_layers_and_the_head_stays_last(method):
    seen = [plan_for(budget, method=method, size=4) for budget in (10**6, 16_000, 6_000, 1_000, 20)]
    assert seen[0].layers == 4
    assert seen[0].micro_batch == 4
    assert [rank_of(p) for p in seen] == sorted((rank_of(p) for p in seen), reverse=True)
    assert seen[-1].status == "skipped"
    for plan in seen:
        assert plan.status == ("skipped" if plan.micro_batch == 0 else "ok" if plan.layers else "head-only")
        assert (plan.reason is None) == (plan.layers == 4 and plan.micro_batch == 4)


def test_given_layers_are_kept_until_only_the_head_is_left():
    plans = [plan_for(budget, layers=3) for budget in (100, 500, 3_000, 6_000, 20_000, 40_000)]
    assert {plan.layers for plan in plans} == {0, 3}
    assert {plan.status for plan in plans} == {"ok", "head-only"}


def test_no_layer_is_given_up_while_a_smaller_micro_batch_would_fit():
    for budget in range(1_000, 9_001, 1_000):
        plan = plan_for(budget)
        if plan.layers < 4 and plan.status != "skipped":
            one_more = plan_for(None, size=1, layers=plan.layers + 1)
            assert one_more.saved_bytes > budget


@pytest.mark.parametrize("scope", ["saved", "peak"])
@pytest.mark.parametrize("method", ["vanilla", "exact", "hosvd", "hosvd:variance=0.8"])
def test_a_skipped_client_is_told_the_least_that_it_would_need(method, scope):
    plan = plan_for(1, method=method, scope=scope, size=2, layers=1)
    assert (plan.status, plan.micro_batch, plan.kept, plan.saved_bytes) == ("skipped", 0, (), None)
    assert f"{plan.least_bytes:,} {scope} bytes" in plan.reason
    assert ("inference" in plan.reason) == (scope == "peak")
    fits = plan_for(plan.least_bytes, method=method, scope=scope, size=2, layers=0)
    assert (fits.status, fits.micro_batch) == ("head-only", 1)
    assert plan_for(plan.least_bytes - 1, method=method, scope=scope, size=2, layers=0).status == "skipped"


class Convolutional(nn.Sequential):
    """A network without a linear head."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def test_a_network_without_a_linear_head_is_skipped_where_nothing_fits():
    plan = fedact.make_plan(Convolutional(), 20, batch(4), "exact")
    assert plan.status == "skipped"
    assert plan.least_bytes > 20


# The bytes -----------------------------------------------------------------------------------------------------------------

METHODS = ["vanilla", "exact", "hosvd", "hosvd:variance=0.8", "hosvd:ranks=4x3x3x2"]
budgets = st.integers(11, 21).flatmap(lambda bits: st.integers(2**bits, min(2 ** (bits + 1), 4_000_000)))
scopes, layers_asked = st.sampled_from(["saved", "peak"]), st.sampled_from(["auto", 1, 3])
problems = st.tuples(budgets, st.integers(1, 12), st.sampled_from(METHODS), scopes, layers_asked)


def make(problem, rank=None) -> tuple[Plan, nn.Module]:
    budget, size, method, scope, layers = problem
    if method.startswith("hosvd:ranks"):
        return _without_head(problem, rank)
    plan = fedact.make_plan(net(), budget, batch(size, rank=rank), method, layers, scope)
    return plan, fedact.apply(net(), Plan.from_json(plan.to_json()))


def _without_head(problem, rank) -> tuple[Plan, nn.Module]:
    """Fixed ranks are for four dimensions, so the head must not be trained: here a 1x1 convolution is in its place."""
    budget, size, method, scope, layers = problem
    plan = fedact.make_plan(convolutional_net(), budget, batch(size, rank=rank), method, layers, scope)
    return plan, fedact.apply(convolutional_net(), plan)


def convolutional_net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU6(),
            nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.ReLU6(), nn.Conv2d(6, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        ).train()  # fmt: skip


@settings(max_examples=30)
@given(problems, st.data())
def test_no_real_step_exceeds_the_plan_or_the_budget(problem, data):
    budget, size, method, scope, layers = problem
    if method.startswith("hosvd:ranks"):
        problem = (max(budget, 60_000), size, method, scope, layers)
    plan, model = make(problem, rank=data.draw(st.sampled_from([None, 1, 3]), label="rank of the server's data"))
    if plan.status == "skipped":
        assert plan.least_bytes > budget
        return
    part = data.draw(st.integers(1, plan.micro_batch), label="micro-batch")
    x, y = batch(part, seed=data.draw(st.integers(1, 9), label="seed"))
    first, second = step(model, x, y), step(model, x, y)
    limit = plan.saved_bytes if scope == "saved" else plan.peak_bytes
    assert limit <= problem[0]
    assert max(in_scope(first, scope), in_scope(second, scope)) <= limit
    assert max(first.saved_bytes, second.saved_bytes) <= plan.saved_bytes
    assert max(first.hidden_bytes, second.hidden_bytes) == 0


@settings(max_examples=20)
@given(problems, st.integers(1, 9))
def test_a_full_micro_batch_under_fixed_methods_holds_exactly_what_the_plan_says(problem, seed):
    if problem[2].startswith("hosvd:ranks"):
        problem = (max(problem[0], 60_000), *problem[1:])
    plan, model = make(problem)
    if plan.status == "skipped" or not plan.fixed:
        return
    memory = step(model, *batch(plan.micro_batch, seed))
    expected = (plan.saved_bytes, plan.state_bytes, plan.paper_bytes)
    assert (memory.saved_bytes, memory.state_bytes, memory.paper_bytes) == expected


@pytest.mark.parametrize("method", ["vanilla", "exact"])
@pytest.mark.parametrize("size", [4, 7])
def test_a_smaller_micro_batch_is_planned_with_the_bytes_it_really_takes_also_for_the_first_layer(method, size):
    """The first convolution keeps the raw images, which do not count, whole batch or not."""
    plan = plan_for(24_000 if method == "vanilla" else 15_000, size=size, method=method, layers=4)
    assert 0 < plan.micro_batch < size
    x, y = batch(plan.micro_batch)
    assert step(fedact.apply(net(), plan), x, y).saved_bytes == plan.saved_bytes


@settings(max_examples=12)
@given(st.sampled_from(["hosvd:variance=0.6", "hosvd:variance=0.8", "hosvd:variance=0.99", "hosvd:variance=1.0"]),
       st.sampled_from([1, 2, 4]), st.integers(1, 9), st.sampled_from(["saved", "peak"]))  # fmt: skip
def test_a_variance_never_stores_more_than_its_caps_on_data_of_higher_rank(method, rank, seed, scope):
    plan = plan_for(10**7, size=6, method=method, scope=scope, rank=rank)
    memory = step(fedact.apply(net(), plan), *batch(6, seed))
    assert memory.saved_bytes <= plan.saved_bytes
    assert memory.peak_bytes <= plan.peak_bytes
    assert sum(kept.cap_bytes for kept in plan.kept) <= plan.saved_bytes


def strided() -> nn.Module:
    """The largest moment of a step is the compression of the trained convolution's input."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 2, 4, stride=4), nn.Flatten(), nn.Linear(8, 4))


@pytest.mark.parametrize("variance", [0.8, 0.99, 1.0])
@pytest.mark.parametrize("seed", [1, 2])
def test_a_variance_never_peaks_above_its_plan_where_compressing_is_the_peak(variance, seed):
    plan = fedact.make_plan(strided(), 10**7, batch(8), f"hosvd:variance={variance}", 1, "peak")
    assert step(fedact.apply(strided(), plan), *batch(8, seed)).peak_bytes <= plan.peak_bytes


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_no_step_is_hidden_or_over_its_plan_for_any_padding_mode(mode):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Net(mode)
    for method in ("exact", "hosvd", "hosvd:variance=0.8"):
        plan = fedact.make_plan(model, 20_000, batch(6), method, 4)
        memory = step(fedact.apply(copy.deepcopy(model), plan), *batch(plan.micro_batch, 3))
        assert memory.hidden_bytes == 0
        assert memory.saved_bytes <= plan.saved_bytes


@pytest.mark.parametrize("method", ["exact", "hosvd"])
def test_a_budget_larger_than_vanilla_needs_gives_vanillas_gradient(method):
    x, y = batch(8)
    plan = plan_for(plan_for(None, method="vanilla").saved_bytes + 1, method=method)
    assert (plan.status, plan.micro_batch, plan.layers, plan.reason) == ("ok", 8, 4, None)
    gradients = []
    for model in (fedact.apply(net(), plan), fedact.compress(net(), "vanilla", layers=4)):
        F.cross_entropy(model(x), y).backward()
        gradients.append([p.grad for p in trained_parameters(model).values()])
    for ours, vanilla in zip(*gradients, strict=True):
        assert torch.allclose(ours, vanilla, rtol=1e-4, atol=1e-6)


def test_the_plan_says_what_vanilla_would_keep_and_what_the_device_needs_besides():
    model, (x, y) = net(), batch(8)
    plan = fedact.make_plan(model, 9_000, (x, y), "exact", 2, momentum=True)
    assert plan.micro_batch < 8
    vanilla = fedact.compress(net(), "vanilla", layers=2)
    assert plan.vanilla_saved_bytes == step(vanilla, x, y).saved_bytes
    trained = sum(p.nbytes for p in trained_parameters(vanilla).values())
    assert (plan.gradient_bytes, plan.optimizer_bytes) == (trained, trained)
    assert plan.weight_bytes == sum(t.nbytes for t in model.state_dict().values())


# JSON, sizes, errors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [None, 10**6, 9_000, 500, 1])
@pytest.mark.parametrize("method", ["vanilla", "hosvd", "hosvd:variance=0.8"])
def test_a_plan_is_the_same_after_json(method, budget):
    plan = plan_for(budget, method=method, size=4)
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert hash(again) == hash(plan)
    assert "\n" not in plan.to_json()


def test_a_variance_with_many_digits_survives_its_name():
    plan = plan_for(None, method="hosvd:variance=0.12345678", size=2, layers=1)
    assert plan.method == "hosvd:variance=0.12345678"


NO_PLANS = ["", "{}", "[]", "3", "null", "plan", '"plan"', '{"kept": []}', '{"kept": 5}', '{"kept": [1]}']


@pytest.mark.parametrize("text", NO_PLANS)
def test_what_is_no_plan_is_refused(text):
    with pytest.raises(fedact.ConfigError, match="not a plan"):
        Plan.from_json(text)


NONSENSE = {
    "an unknown field": {"colour": "blue"},
    "kept is a text": {"kept": ""},
    "a shape is a text": {"kept": [{"name": "head", "shape": "8x8", "method": "exact", "cap_bytes": 8}]},
    "a micro-batch is a text": {"micro_batch": "8"},
    "a micro-batch is negative": {"micro_batch": -1},
    "an unknown status": {"status": "splendid"},
    "an unknown scope": {"scope": "both"},
    "a budget is a text": {"budget_bytes": "512KB"},
}


@pytest.mark.parametrize("change", NONSENSE.values(), ids=NONSENSE)
def test_a_plan_with_a_nonsensical_field_is_refused(change):
    good = dataclasses.asdict(plan_for(None, size=2, layers=1))
    with pytest.raises(fedact.ConfigError, match="not a plan"):
        Plan.from_json(json.dumps({**good, **change}))


def test_a_plan_without_a_field_is_refused():
    good = json.loads(plan_for(None, size=2, layers=1).to_json())
    for name in set(good) - {"reason", "least_bytes"}:
        with pytest.raises(fedact.ConfigError, match="not a plan"):
            Plan.from_json(json.dumps({key: value for key, value in good.items() if key != name}))


def test_a_budget_is_a_number_of_bytes_or_a_size():
    assert plan_for("9KB") == plan_for(9_000) == plan_for("9_000")
    assert plan_for("9KiB").budget_bytes == 9 * 1024
    assert plan_for(None).budget_bytes is None


@pytest.mark.parametrize("budget", [0, -5, "much", "0KB", "1.5B", True, 1.5])
def test_what_is_no_budget_is_refused(budget):
    with pytest.raises(fedact.ConfigError):
        plan_for(budget)


@pytest.mark.parametrize("change", [{"scope": "both"}, {"method": "hosdv"}, {"method": "hosvd:variance=2"}, {"layers": 5},
                                    {"layers": -1}, {"layers": "many"}, {"layers": 2.7}], ids=str)  # fmt: skip
def test_an_unknown_method_scope_or_number_of_layers_is_refused(change):
    with pytest.raises(fedact.ConfigError):
        plan_for(10_000, **change)


def test_ranks_for_another_number_of_dimensions_are_refused():
    with pytest.raises(fedact.ConfigError, match="ranks"):
        plan_for(10_000, method="hosvd:ranks=2x2x2")
