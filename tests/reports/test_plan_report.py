"""What is said about a plan: every tensor has its row, the rows add up, and the words tell what changes."""

import itertools
from dataclasses import replace

import pytest
import torch
from rich.console import Console

import fedact
from fedact.config.plan import Kept, Plan
from fedact.measure.plan_cost import StepTime, input_costs, step_time
from fedact.reports.plan.tables import PlanReport, error, gains, summary, tensor_table
from tests.support import inverted_residuals
from tests.support.inverted_residuals import small
from tests.support.planned import batch, net, plan_for

METHODS = ["vanilla", "exact", "exact:derive=2", "hosvd:variance=0.8", "hosvd", "quantize", "transform", "checkpoint", "asi"]


def ticks():
    """A clock on which everything takes a second."""
    count = itertools.count()
    return lambda: float(next(count))


def column(table, number: int) -> list[str]:
    return list(table.columns[number].cells)


def text_of(table) -> str:
    console = Console(width=120)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


@pytest.mark.parametrize("layers", [3, 4])
@pytest.mark.parametrize("method", METHODS)
def test_the_rows_add_up_to_the_saved_bytes_and_name_every_layer(method, layers):
    plan = plan_for(None, method=method, size=4, layers=layers)
    table = tensor_table(plan, list(input_costs(net(), plan, batch(4)[0])))
    *rows, total = [int(cell.replace(",", "")) for cell in column(table, 5)]
    assert sum(rows) == total == plan.saved_bytes
    named = "\n".join(column(table, 0)).split("\n")
    assert {kept.name for kept in plan.kept} <= {name.removesuffix(" (images)") for name in named}
    assert min(rows) >= 0 or method == "checkpoint"


def test_the_very_images_count_nothing():
    plan = plan_for(None, method="exact", size=4, layers=4)
    first, *others = input_costs(net(), plan, batch(4)[0], ticks())
    assert (first.name, first.images, first.cap_bytes) == ("stem.0", True, 0)
    assert not any(part.images for part in others)
    assert column(tensor_table(plan, [first]), 0)[0] == "stem.0 (images)"


def mobile():
    """A network in which a frozen layer's input is smaller than the trained ones' after it."""
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 2, 3), torch.nn.ReLU(), torch.nn.Conv2d(2, 24, 1), torch.nn.ReLU6(),
        torch.nn.Conv2d(24, 24, 3, padding=1, groups=24), torch.nn.ReLU6(), torch.nn.Conv2d(24, 4, 1),
        torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, 4),
    )  # fmt: skip


def test_a_frozen_layers_input_has_a_row_and_those_made_again_from_it_share_one():
    plan = fedact.make_plan(mobile(), None, batch(4), "exact:derive=2", layers=2)
    found = list(input_costs(mobile(), plan, batch(4)[0], ticks()))
    assert [(part.name, part.frozen, part.source) for part in found] == [
        ("2", True, None), ("4", False, "2"), ("6", False, "2"), ("9", False, None),
    ]  # fmt: skip
    assert [part.cap_bytes for part in found] == [4 * 2 * 6 * 6 * 4, 0, 0, 4 * 4 * 4]
    assert found[0].shape == (4, 2, 6, 6)
    table = tensor_table(plan, found)
    assert column(table, 0)[:3] == ["2 (frozen)", "4\n6", "9"]
    assert column(table, 2)[1] == "made again from\n2"


def test_layers_in_streams_share_a_row_behind_the_input_that_their_block_keeps():
    torch.manual_seed(0)
    model, (x, y) = small(), inverted_residuals.batch(2, dtype=torch.float32)
    plan = fedact.make_plan(model, None, (x, y), "exact", layers=5)
    # The first block's trained layers are its last two, so that its entry's input stands at the first of these.
    caps = {"3.conv.3": 936, "4.conv.0": 432, "7": 48}
    kept = tuple(replace(each, cap_bytes=caps.get(each.name, 0)) for each in plan.kept)
    found = list(input_costs(small(), replace(plan, kept=kept, room_bytes=2_000), x, ticks()))
    assert [(part.name, part.frozen, part.source, part.cap_bytes) for part in found] == [
        ("3.conv.0", True, None, 936), ("3.conv.3", False, "3.conv.0", 0), ("3.conv.6", False, "3.conv.0", 0),
        ("4.conv.0", False, None, 432), ("4.conv.3", False, "4.conv.0", 0), ("4.conv.6", False, "4.conv.0", 0),
        ("7", False, None, 48),
    ]  # fmt: skip
    assert column(tensor_table(plan, found), 0)[:3] == ["3.conv.0 (frozen)", "3.conv.3\n3.conv.6", "4.conv.0"]


def test_settings_have_a_column_of_their_own():
    plan = plan_for(None, method="hosvd:ranks=2x3x3x2,bits=8,mean=true", size=4, layers=1)
    table = tensor_table(plan, list(input_costs(net(), plan, batch(4)[0])))
    cells = [column(table, number)[0] for number in (2, 3, 4)]
    assert cells == ["hosvd:mean=true", "2x3x3x2", "8"]


def test_a_tensor_takes_its_time_once_a_micro_batch():
    plan = plan_for(None, method="quantize", size=8, layers=2)
    for micro_batch in (8, 2):
        found = input_costs(net(), replace(plan, micro_batch=micro_batch), batch(8)[0], ticks())
        assert {part.seconds for part in found} == {8 / micro_batch}


@pytest.mark.parametrize("method", ["quantize", "lance"])
def test_a_steps_time_is_relative_to_plain_trainings(method):
    plan = plan_for(None, method=method, size=4, layers=1)
    model = net().eval()
    assert step_time(model, plan, [batch(4, seed) for seed in range(3)], clock=ticks()) == StepTime(1.0, 1.0)
    assert not any(parameter.grad is not None for parameter in model.parameters())


def plan_report(plan: Plan, more: Plan | None = None) -> PlanReport:
    return PlanReport(plan, (), StepTime(3.0, 2.0), more, body_layers="4 convolutions")


def test_the_device_needs_its_peak_trained_weights_gradients_optimizer_and_images():
    plan = plan_for(10_000, size=8, layers=2)
    shown = text_of(summary(plan_report(plan)))
    others = 2 * plan.gradient_bytes + plan.optimizer_bytes + plan.batch_bytes
    assert f"{plan.peak_bytes + others:,}: peak" in shown
    assert f"{plan.peak_bytes:,}; {plan.peak_bytes / plan.floor_bytes:.2f} x floor" in shown
    # Peak first: what is alive is what a device must have.
    accounts = [name for name in column(summary(plan_report(plan)), 0) if name.endswith(" bytes")]
    assert accounts == ["peak bytes", "saved bytes", "device bytes", "paper bytes"]
    assert f"{plan.saved_bytes:,} of 10,000 ({100 * plan.saved_bytes / 10_000:.1f} %)" in shown
    assert f"{plan.vanilla_saved_bytes:,} ({plan.vanilla_saved_bytes / plan.saved_bytes:.1f}x)" in shown
    assert "1.50x plain training's of the whole batch at once (3.00 s to 2.00 s here)" in shown


def test_the_expected_error_is_shown_in_all_and_as_a_layers_mean():
    kept = tuple(Kept(name, (1, 2), "exact", 8, error) for name, error in (("a", 0.25), ("b", 0.75)))
    plan = replace(plan_for(None, size=4, layers=1), kept=kept, expected_error=1.0)
    assert plan.error_per_layer == 0.5
    assert "1, 0.5 a layer" in text_of(summary(plan_report(plan)))
    assert "not measured" in text_of(summary(plan_report(replace(plan, expected_error=None))))


def test_what_more_would_buy_is_said_figure_by_figure():
    less, more = plan_for(4_000, size=8, layers=2), plan_for(60_000, size=8, layers=3)
    assert gains(less, more) == (
        f"layers 2 to 3, micro-batch {less.micro_batch} to {more.micro_batch}, "
        f"saved bytes {less.saved_bytes:,} to {more.saved_bytes:,}; as now: recompute 0, expected error 0, error a layer 0"
    )
    assert gains(more, replace(more, budget_bytes=10**9)).startswith("nothing")


def test_more_than_nothing_is_said_without_a_before():
    skipped, head = plan_for(20), plan_for(500)
    assert (skipped.status, head.status) == ("skipped", "head-only")
    words = gains(skipped, head)
    assert words.startswith("layers 0, micro-batch 8, ")
    assert gains(skipped, plan_for(40)) == "nothing: that is too little as well"
    shown = " ".join(text_of(summary(plan_report(skipped, head))).split())
    assert f"{skipped.least_bytes:,} saved bytes" in shown


def test_rounding_is_no_error():
    assert [error(value) for value in (None, 1e-12, 0.0123456, 2.5)] == ["-", "0", "0.0123", "2.5"]
