"""The bench's time and operations: of the trained part alone, the methods side by side on the same batch."""

import torch
from torch import nn

import fedact
from fedact.measure.cost import count_flops, time_micro_batches, time_ratios, time_steps
from fedact.measure.methods import compressed_models, measure_methods
from fedact.measure.step import prefix_outputs
from tests.support.networks import batch, normed


class Clock:
    """Time passes by what modules do: each counted module's forward adds its seconds."""

    def __init__(self) -> None:
        self.now, self.order = 0.0, []

    def __call__(self) -> float:
        return self.now

    def charge(self, module: nn.Module, seconds: float, name: str = "") -> None:
        def hook(*_: object) -> None:
            self.now += seconds
            if name:
                self.order.append(name)

        module.register_forward_hook(hook)


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5))


def test_time_is_of_the_trained_part_interleaved_and_relative_on_the_same_batch():
    clock, names = Clock(), ("vanilla", "exact", "quantize")
    models = compressed_models(network().eval(), names, 1)
    for name, seconds in zip(names, (2.0, 3.0, 5.0), strict=True):
        clock.charge(models[name][0], 100.0)
        clock.charge(models[name][2], seconds, name)
    rows = time_steps(models, batch(2), [batch(2, seed) for seed in range(1, 4)], clock)
    assert rows == [{"vanilla": 2.0, "exact": 3.0, "quantize": 5.0}] * 3
    assert [set(clock.order[place : place + 3]) for place in range(0, 12, 3)] == [set(names)] * 4
    assert len({tuple(clock.order[place : place + 3]) for place in range(0, 12, 3)}) > 1


def test_ratios_are_of_times_on_the_same_batch():
    rows = [{"vanilla": 1.0, "x": 2.0}, {"vanilla": 10.0, "x": 30.0}, {"vanilla": 2.0, "x": 20.0}]
    assert time_ratios(rows, "x", "vanilla") == [2.0, 3.0, 10.0]


def test_flops_of_the_trained_part_are_counted_as_by_hand():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 8, 3, groups=4), nn.ReLU(), nn.Conv2d(8, 6, 1, bias=False), nn.Flatten(),
        nn.Linear(96, 5),
    ).eval()  # fmt: skip
    models = compressed_models(model, ["vanilla", "exact", "gradient_filter:patch=2"], 2)
    (x, y), size = batch(7), 7
    depthwise, pointwise, head = 2 * size * 16 * (8 * 1 * 9), 2 * size * 16 * (6 * 8), 2 * size * (96 * 5)
    # The first trained layer has no input gradient.
    by_hand = 2 * depthwise + 3 * pointwise + 3 * head
    prefix = prefix_outputs(models["vanilla"], x)
    assert count_flops(models["vanilla"], (x, y), prefix) == by_hand
    assert count_flops(models["exact"], (x, y), prefix) == by_hand
    filtered = pointwise + 2 * pointwise // 4
    assert count_flops(models["gradient_filter:patch=2"], (x, y), prefix) == 2 * depthwise + filtered + 3 * head


def test_a_plan_says_what_a_batch_computes_and_what_plain_training_does():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 8, 3, groups=4), nn.ReLU(), nn.Conv2d(8, 6, 1, bias=False), nn.Flatten(),
        nn.Linear(96, 5),
    )  # fmt: skip
    depthwise, pointwise, head = 2 * 8 * 16 * (8 * 1 * 9), 2 * 8 * 16 * (6 * 8), 2 * 8 * (96 * 5)
    by_hand = 2 * depthwise + 3 * pointwise + 3 * head
    x, y = batch(8)
    at_once = fedact.make_plan(model, None, (x, y), "exact", layers=2)
    in_parts = fedact.make_plan(model, at_once.saved_bytes // 2, (x, y), "exact", layers=2, scope="saved")
    decomposed = fedact.make_plan(model, None, (x, y), "hosvd:variance=0.9", layers=2)
    assert in_parts.micro_batch < 8
    assert at_once.step_flops == in_parts.step_flops == by_hand
    assert {plan.vanilla_step_flops for plan in (at_once, in_parts, decomposed)} == {by_hand}
    assert decomposed.step_flops > by_hand


def test_recomputation_and_decompositions_are_counted():
    models = compressed_models(normed().eval(), ["vanilla", "checkpoint", "hosvd:variance=0.5"], 2)
    prefix = prefix_outputs(models["vanilla"], batch(4)[0])
    vanilla, checkpoint, hosvd = (count_flops(model, batch(4), prefix) for model in models.values())
    assert checkpoint > vanilla
    grams = sum(9 * side**3 for side in (4, 4, 8, 8))
    assert hosvd > vanilla + grams


def test_an_eigendecomposition_has_its_textbook_count():
    from fedact.measure.cost import FlopCounter

    with FlopCounter() as counter:
        torch.linalg.eigh(torch.eye(10))
        torch.linalg.qr(torch.ones(12, 3))
        torch.linalg.svd(torch.ones(3, 12), full_matrices=False)
    assert counter.total == 9 * 10**3 + (4 * 12 * 9 - 4 * 27 // 3) + (6 * 12 * 9 + 20 * 27)


def test_no_timed_batches_measure_no_time_and_the_yardstick_need_not_be_a_method():
    model = normed().eval()
    models, baseline = compressed_models(model, ["checkpoint"], 2), compressed_models(model, ["vanilla"], 2)["vanilla"]
    (each,) = measure_methods(models, baseline, batch(4), [batch(4, 1)], [])
    assert each.seconds is None
    assert each.time_ratio is None
    assert each.flops_ratio > 1
    (timed,) = measure_methods(models, baseline, batch(4), [batch(4, 1)], [batch(4, 2), batch(4, 3), batch(4, 4)])
    assert timed.time_range[0] <= timed.time_ratio <= timed.time_range[1]
    assert timed.row()["saved_bytes"] == timed.gradient_error.saved_bytes


def test_micro_batches_are_timed_as_whole_steps_against_whole_batches():
    clock, names = Clock(), ("vanilla", "exact")
    models = compressed_models(network().eval(), names, 1)
    for name, seconds in zip(names, (2.0, 3.0), strict=True):
        clock.charge(models[name][0], 10.0)
        clock.charge(models[name][2], seconds, name)
    sizes = {"at once": (models["vanilla"], None), "exact": (models["exact"], 2)}
    rows = time_micro_batches(sizes, [batch(5, seed) for seed in range(4)], clock)
    assert rows == [{"at once": 12.0, "exact": 3 * 13.0}] * 3
