"""Local training: the same gradient whatever the micro-batch, every byte watched, nobody else's dice touched."""

import copy
import dataclasses
from contextlib import contextmanager
from statistics import mean, pstdev

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import fedact
from fedact.config.errors import BudgetError
from fedact.config.plan import Plan
from fedact.measure.memory import Memory, measure_memory
from fedact.nn.surgery import trained_parameters
from fedact.training import step_bytes
from fedact.training.evaluation import evaluate
from fedact.training.local import micro_step, train_locally
from fedact.training.recipe import Recipe
from fedact.training.step_bytes import within_budget
from tests.support.portions import examples, rotated

EXAMPLES = 23
RECIPE = Recipe(batch_size=8, local_epochs=2, lr=0.05, momentum=0.9, weight_decay=1e-3, clip_norm=1.0)


def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU6(inplace=True), nn.Conv2d(4, 4, 3, groups=4),
            nn.ReLU(), nn.Conv2d(4, 6, 1), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.5), nn.Linear(24, 4),
        ).train()  # fmt: skip


def data(examples: int = EXAMPLES) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(examples, 3, 8, 8, generator=generator), torch.randint(0, 4, (examples,), generator=generator)


X, Y = data()


def batches(positions: np.ndarray) -> tuple[Tensor, Tensor]:
    return X[torch.from_numpy(positions)], Y[torch.from_numpy(positions)]


def plan_for(method: str = "exact", micro_batch: int = 8, budget: int | None = None, **options) -> Plan:
    plan = fedact.make_plan(net(), budget, (X[:8], Y[:8]), method, options.pop("layers", 2), **options)
    return dataclasses.replace(plan, micro_batch=micro_batch)


def run(plan: Plan, recipe: Recipe = RECIPE, seed: int = 0, **options):
    model = fedact.apply(net(), plan)
    return model, train_locally(model, batches, EXAMPLES, plan, recipe, np.random.default_rng(seed), **options)


def gradient(method: str, x: Tensor, y: Tensor, part: int) -> Tensor:
    model = fedact.compress(net(), method, layers=2)
    for a, b in zip(x.split(part), y.split(part), strict=True):
        micro_step(model, a, b, len(y), F.cross_entropy)
    return torch.cat([p.grad.flatten() for p in trained_parameters(model).values()])


@examples(40)
@given(st.sampled_from(["vanilla", "exact", "hosvd:variance=1.0"]), st.integers(1, EXAMPLES), st.integers(1, EXAMPLES))
def test_micro_batches_of_any_size_add_up_to_the_same_gradient(method, size, part):
    whole, parts = gradient("vanilla", X[:size], Y[:size], size), gradient(method, X[:size], Y[:size], part)
    assert (parts - whole).norm() <= 1e-5 * whole.norm()


@pytest.mark.parametrize("size", [1, 5, 8])
def test_the_parts_of_the_loss_add_up_to_the_batches_mean_loss(size):
    model = fedact.compress(net().eval(), "exact", layers=1)
    pairs = zip(X[:size].split(3), Y[:size].split(3), strict=True)
    parts = [micro_step(model, x, y, size, F.cross_entropy) for x, y in pairs]
    assert sum(parts) == pytest.approx(float(F.cross_entropy(model(X[:size]), Y[:size])), rel=1e-5)


@pytest.mark.parametrize("micro_batch", [1, 3, 5])
def test_training_in_micro_batches_ends_at_the_weights_of_training_in_batches(micro_batch):
    whole, parts = run(plan_for())[0], run(plan_for(micro_batch=micro_batch))[0]
    for (name, a), b in zip(whole.state_dict().items(), parts.state_dict().values(), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5), name


def test_training_is_plain_sgd_over_the_generators_order():
    model, result = run(plan_for("exact", micro_batch=3))
    twin, generator, losses = fedact.compress(net(), "vanilla", layers=2), np.random.default_rng(0), []
    trained = list(trained_parameters(twin).values())
    optimizer = torch.optim.SGD(trained, RECIPE.lr, RECIPE.momentum, weight_decay=RECIPE.weight_decay)
    for _ in range(RECIPE.local_epochs):
        order = generator.permutation(EXAMPLES)
        for start in range(0, EXAMPLES, 8):
            x, y = batches(order[start : start + 8])
            optimizer.zero_grad()
            loss = F.cross_entropy(twin(x), y)
            loss.backward()
            nn.utils.clip_grad_norm_(trained, RECIPE.clip_norm)
            optimizer.step()
            losses.append(float(loss))
    assert result.loss == pytest.approx(np.mean(losses), rel=1e-4)
    for a, b in zip(model.state_dict().values(), twin.state_dict().values(), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)


def test_only_the_trained_tensors_change():
    plan = plan_for()
    before, (model, _) = net().state_dict(), run(plan)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == set(trained_parameters(model)) == {"3.weight", "3.bias", "5.weight", "5.bias", "9.weight", "9.bias"}


# The budget ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["saved", "peak"])
@pytest.mark.parametrize("method", ["vanilla", "exact", "hosvd:variance=0.8"])
def test_one_byte_over_the_budget_stops_the_training(method, scope):
    plan = plan_for(method, scope=scope)
    result = run(plan)[1]
    most = result.saved_bytes if scope == "saved" else result.peak_bytes
    assert run(dataclasses.replace(plan, budget_bytes=most))[1] == result
    with pytest.raises(BudgetError, match=rf"{scope} bytes, over the budget of {most - 1:,}"):
        run(dataclasses.replace(plan, budget_bytes=most - 1))


@rotated(
    2,
    method=["vanilla", "exact", "hosvd", "hosvd:variance=0.8"],
    scope=["saved", "peak"],
    budget=[3_000, 9_000, 30_000, 120_000],
)
def test_training_under_a_plan_never_breaks_its_budget(method, scope, budget):
    plan = fedact.make_plan(net(), budget, (X[:8], Y[:8]), method, scope=scope, momentum=True)
    if plan.status == "skipped":
        assert plan.least_bytes > budget
        return
    result = run(plan)[1]
    assert (result.saved_bytes if scope == "saved" else result.peak_bytes) <= budget
    assert result.saved_bytes <= plan.saved_bytes


def test_bytes_that_hooks_do_not_see_stop_the_training():
    with pytest.raises(BudgetError, match="ledger and hooks disagree: 7"):
        within_budget(Memory(saved_bytes=10, hidden_bytes=7), plan_for())


# What is measured ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def measurements(monkeypatch) -> list[int]:
    """The number of examples in each step that was measured."""
    sizes: list[int] = []

    def counting(model, inputs, optimizer, stored):
        sizes.append(len(inputs[1]))
        return measure_memory(model, inputs, optimizer, stored)

    monkeypatch.setattr(step_bytes, "measure_memory", counting)
    return sizes


ALL_STEPS = 2 * [3, 3, 2, 3, 3, 2, 3, 3, 1]


@pytest.mark.parametrize("method", ["vanilla", "exact", "hosvd", "hosvd:variance=0.8", "svd"])
def test_the_first_step_of_each_shape_is_measured(measurements, method):
    run(plan_for(method, micro_batch=3, budget=10**6))
    assert measurements == [3, 2, 1]


def test_a_method_with_a_state_has_another_shape_from_the_second_step_on(measurements):
    run(plan_for("asi:variance=0.8", micro_batch=3))
    assert measurements == [3, 3, 2, 1]


def test_audited_steps_are_measured_although_their_bytes_are_known(measurements):
    plan, measured = plan_for("hosvd:variance=0.8", micro_batch=3), {}
    run(plan, measured=measured, audited=range(99))
    assert measurements == ALL_STEPS
    del measurements[:]
    run(plan, measured=measured, audited=(4, 8))
    assert measurements == [3, 1]
    run(plan, measured=measured, audited=())
    assert measurements == [3, 1]


def test_each_client_measures_its_first_step_and_shapes_that_nobody_measured(measurements):
    plan, measured = plan_for(micro_batch=3), {}
    first = run(plan, measured=measured)[1]
    del measurements[:], measured[plan][2, True, False]
    assert dataclasses.replace(run(plan, seed=1, measured=measured)[1], loss=first.loss) == first
    assert measurements == [3, 2]


def test_another_plan_is_measured_anew(measurements):
    measured = {}
    run(plan_for(micro_batch=3), measured=measured)
    del measurements[:]
    run(plan_for("vanilla", micro_batch=3), measured=measured)
    assert measurements == [3, 2, 1]


def test_the_result_is_the_largest_of_every_figure():
    plan, measured = plan_for(micro_batch=3), {}
    result = run(plan, measured=measured)[1]
    memories = [step.memory for step in measured[plan].values()]
    assert result.saved_bytes == max(m.saved_bytes for m in memories)
    assert result.peak_bytes == max(m.peak_bytes for m in memories)
    assert result.paper_bytes == max(m.paper_bytes for m in memories) > 0


def test_mean_and_deviation_are_over_the_steps_whose_ranks_follow_the_data(monkeypatch):
    found, real = [], measure_memory

    @contextmanager
    def noting(*arguments):
        with real(*arguments) as memory:
            yield memory
        found.append(memory)

    monkeypatch.setattr(step_bytes, "measure_memory", noting)
    run(plan := plan_for("hosvd:variance=0.8", micro_batch=3), audited=range(99))
    monkeypatch.undo()
    result = run(plan)[1]
    saved, paper = [m.saved_bytes for m in found], [m.paper_bytes for m in found]
    assert result.steps == len(found) > 3
    assert (result.saved_bytes_mean, result.saved_bytes_std) == pytest.approx((mean(saved), pstdev(saved)))
    assert (result.paper_bytes_mean, result.paper_bytes_std) == pytest.approx((mean(paper), pstdev(paper)))
    assert result.paper_bytes_std > 0


# Evaluation ----------------------------------------------------------------------------------------------------------------


@rotated(2, examples=[1, 127, 128, 129, 300], mode=[True, False])
def test_evaluation_equals_a_plain_loop_and_leaves_the_mode(examples, mode):
    (x, y), model = data(examples), net().train(mode)
    outcome = evaluate(model, lambda positions: (x[positions], y[positions]), examples)
    assert model.training == mode
    reference, right, total = copy.deepcopy(model).eval(), 0, 0.0
    with torch.no_grad():
        for image, label in zip(x, y, strict=True):
            scores = reference(image[None])[0]
            right += int(scores.argmax()) == int(label)
            total -= float(scores.log_softmax(0)[label])
    assert outcome.score == pytest.approx(right / examples)
    assert outcome.loss == pytest.approx(total / examples, rel=1e-4)
    assert all(p.grad is None for p in model.parameters())


# Reproducibility -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["exact", "hosvd:variance=0.8"])
def test_the_same_generator_gives_the_same_training_bit_for_bit(method):
    plan = plan_for(method, micro_batch=3)
    (a, first), (b, second), (c, _) = run(plan), run(plan), run(plan, seed=1)
    assert first == second
    assert all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    assert not torch.equal(a[9].weight, c[9].weight)


def test_training_with_and_without_measuring_is_the_same_bit_for_bit():
    plan = plan_for(micro_batch=3)
    model, result = run(plan)
    all_measured, same = run(plan, audited=range(99))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), all_measured.parameters(), strict=True))
    assert same == result


def test_the_global_generators_are_not_touched():
    torch.manual_seed(3)
    np.random.seed(3)
    plan = plan_for("hosvd:variance=0.8", micro_batch=3)
    before = torch.get_rng_state(), np.random.get_state()
    model, _ = run(plan)
    fedact.make_plan(model, 30_000, (X[:8], Y[:8]))
    evaluate(model, batches, EXAMPLES)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), before[1], strict=True))
