"""Plans under another update than whole layers: what they predict is measured, and no step exceeds the budget."""

import pytest
import torch.nn.functional as F
from torch import Tensor, nn

import fedact
from fedact.config.plan import Plan
from fedact.planner import expected_error
from tests.support import transformers
from tests.support.planned import batch, in_scope, net
from tests.support.portions import rotated

UPDATES = ["bias", "lora:rank=2", "lora:rank=2,freeze_a=true"]
METHODS = ["exact", "vanilla", "auto", "hosvd", "quantize", "checkpoint", "exact:derive=2"]
BATCH = 8


def measured(plan: Plan, model: nn.Module, example: tuple[Tensor, Tensor]) -> fedact.measure_memory:
    model, (x, y) = fedact.apply(model, Plan.from_json(plan.to_json())), example
    for _ in range(2):
        part = x[: plan.micro_batch].clone(), y[: plan.micro_batch].clone()
        with fedact.measure_memory(model, inputs=part) as memory:
            (F.cross_entropy(model(part[0]), part[1], reduction="sum") / BATCH).backward()
    return memory


@rotated(3, update=UPDATES, method=METHODS, scope=["peak", "saved"], budget=[None, 30_000, 12_000, 5_000])
def test_bytes_are_those_measured_and_within_the_budget(update, method, scope, budget):
    plan = fedact.make_plan(net(), budget, batch(BATCH), method, scope=scope, update=update)
    assert plan.update == update
    if plan.status == "skipped":
        return
    memory = measured(plan, net(), batch(BATCH))
    assert budget is None or in_scope(memory, scope) <= budget
    if plan.fixed:
        assert (memory.saved_bytes, memory.state_bytes) == (plan.saved_bytes, plan.state_bytes)
        assert memory.peak_bytes == plan.peak_bytes or method == "auto"
    else:
        assert memory.saved_bytes <= plan.saved_bytes


@pytest.mark.filterwarnings("ignore:not compressed")
@rotated(2, update=["layers", "bias"], method=["exact", "hosvd", "quantize", "auto"], share=[1.0, 0.3])
def test_what_norms_keep_and_train_is_planned(update, method, share):
    example = transformers.batch(32, BATCH)
    whole = fedact.make_plan(transformers.vit(), None, example, "exact", layers=5, update=update)
    budget = int(share * whole.peak_bytes)
    plan = fedact.make_plan(transformers.vit(), budget, example, method, layers=5, update=update)
    assert plan.status == "ok"
    memory = measured(plan, transformers.vit(), example)
    assert memory.peak_bytes <= budget
    assert memory.saved_bytes == plan.saved_bytes if plan.fixed else memory.saved_bytes <= plan.saved_bytes
    trained = {key for key, each in fedact.apply(transformers.vit(), plan).named_parameters() if each.requires_grad}
    assert ("encoder.ln.bias" in trained) == (update == "bias")


@pytest.mark.parametrize("update", UPDATES)
def test_gradients_and_optimizer_state_are_those_of_what_is_trained(update):
    whole = fedact.make_plan(net(), None, batch(BATCH), "exact", layers=3, momentum=True)
    plan = fedact.make_plan(net(), None, batch(BATCH), "exact", layers=3, momentum=True, update=update)
    trained = sum(p.nbytes for p in fedact.apply(net(), plan).parameters() if p.requires_grad)
    assert plan.gradient_bytes == plan.optimizer_bytes == trained < whole.gradient_bytes
    assert plan.saved_bytes < whole.saved_bytes or update == "lora:rank=2"
    assert [kept.name for kept in plan.kept if "lora" not in update] in ([], ["head"])


def test_the_error_of_a_first_factors_gradient_is_told_though_training_begins_with_none():
    plan = fedact.make_plan(net(), None, batch(BATCH), "quantize:bits=2", layers=2, update="lora:rank=2")
    gentle = fedact.make_plan(net(), None, batch(BATCH), "quantize:bits=8", layers=2, update="lora:rank=2")
    assert plan.expected_error > 10 * gentle.expected_error > 0
    assert expected_error(net(), plan, batch(BATCH)) == pytest.approx(plan.expected_error, rel=0.5)
