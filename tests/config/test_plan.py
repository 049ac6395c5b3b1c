"""Plans as JSON, and what is no plan."""

import dataclasses
import json

import pytest

import fedact
from fedact.config.plan import Plan
from tests.support.planned import batch, net, plan_for

# JSON, sizes, errors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [None, 10**6, 9_000, 500, 1])
@pytest.mark.parametrize("method", ["vanilla", "hosvd", "hosvd:variance=0.8"])
def test_a_plan_is_the_same_after_json(method, budget):
    plan = plan_for(budget, method=method, size=4)
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert hash(again) == hash(plan)
    assert "\n" not in plan.to_json()


def test_a_plan_says_its_floor_and_what_a_device_must_hold():
    plan = plan_for(9_000, method="exact", size=4, layers=2)
    # Net's right convolution: 6 channels of 8 x 8 in, 8 out.
    assert plan.floor_bytes == (6 + 8) * 64 * 4 == fedact.floor(net(), batch(4)).bytes
    assert plan.batch_bytes == plan.micro_batch * (3 * 64 * 4 + 8)
    trained = 4 * (6 * 8 + 8 + 6 * 8 * 9 + 8 + 8 * 4 + 4)
    assert plan.device_bytes == plan.peak_bytes + 2 * trained + plan.batch_bytes
    assert plan_for(1, method="exact", size=4).floor_bytes == plan.floor_bytes


def test_a_plan_from_before_floors_is_read():
    plan = plan_for(None, size=2, layers=1)
    fields = {
        name: value for name, value in json.loads(plan.to_json()).items() if name not in ("floor_bytes", "batch_bytes")
    }
    old = Plan.from_json(json.dumps(fields))
    assert old == dataclasses.replace(plan, floor_bytes=None, batch_bytes=None)
    assert old.device_bytes is None


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
    for name in (field.name for field in dataclasses.fields(Plan) if field.default is dataclasses.MISSING):
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
