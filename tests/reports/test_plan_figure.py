"""The figure of plans: the panels hold the plans' figures, and their texts do not cover each other."""

import itertools

import pytest
from matplotlib.text import Text

from fedact.config.plan import Kept, Plan
from fedact.reports.plan.figures import plans_against_budget, runs

BUDGETS = (64_000, 128_000, 256_000, 512_000)


def made(method: str, budget: int, layers: int | None, error: float) -> Plan:
    status = "skipped" if layers is None else "ok" if layers else "head-only"
    kept = tuple(Kept(f"{place}", (1, 4), "exact", 16, error) for place in range((layers or 0) + 1))
    return Plan(
        method, status, budget, "saved", 8, 0 if layers is None else 1, layers or 0, () if layers is None else kept,
        budget, 0, budget, budget, budget, 1, 1, 1, True, expected_error=None if layers is None else error * len(kept),
    )  # fmt: skip


def ladder(method: str, layers, errors) -> list[Plan]:
    return [made(method, *each) for each in zip(BUDGETS, layers, errors, strict=True)]


LADDERS = {
    "auto": ladder("auto", (4, 12, 28, 52), (0.4, 0.2, 0.05, 0.01)),
    "hosvd:variance=0.8": ladder("hosvd:variance=0.8", (0, 4, 8, 8), (0.3, 0.3, 0.2, 0.02)),
    "exact": ladder("exact", (None, 0, 1, 4), (0.0,) * 4),
}


def lines(axes) -> list[list[list[float]]]:
    return [line.get_xydata().tolist() for line in axes.lines]


def test_the_panels_hold_depths_mean_errors_and_what_is_exact():
    depth, error, rail = plans_against_budget("a title", LADDERS, [128_000]).axes
    assert [[64_000, 4], [128_000, 12], [256_000, 28], [512_000, 52]] in lines(depth)
    assert [[128_000, 0], [256_000, 1], [512_000, 4]] in lines(depth)
    assert [pytest.approx([64_000, 0.4]), *map(pytest.approx, [[128_000, 0.2], [256_000, 0.05], [512_000, 0.01]])] in lines(
        error
    )
    assert [[128_000, 0], [256_000, 0], [512_000, 0]] in lines(rail)
    assert all([[128_000, 0], [128_000, 1]] in lines(axes) for axes in (depth, error, rail))


def test_no_line_crosses_a_budget_without_a_point():
    assert list(runs([(1, 9), (2, 9), (8, 9)], [1, 2, 4, 8])) == [[(1, 9), (2, 9)], [(8, 9)]]
    assert list(runs([], [1, 2])) == []


def test_a_skipped_plan_is_drawn_below_the_head_alone():
    depth, *_ = plans_against_budget("a title", LADDERS, []).axes
    names = dict(zip((tick.get_text() for tick in depth.get_yticklabels()), depth.get_yticks(), strict=True))
    assert names["skipped"] < names["head alone"] == 0
    assert [[64_000, names["skipped"]]] in lines(depth)


def test_every_method_is_named_and_every_depth_written_and_no_text_covers_another():
    figure = plans_against_budget("a title", LADDERS, [128_000])
    figure.draw_without_rendering()
    depth, error, rail = figure.axes
    assert {text.get_text() for text in depth.texts} == {*LADDERS, "asked"}
    assert sorted(text.get_text() for text in error.texts) == sorted(["4", "12", "28", "52", "0", "4", "8", "8"])
    assert [text.get_text() for text in rail.texts] == ["0", "1", "4"]
    boxes = [Text.get_window_extent(text) for axes in figure.axes for text in axes.texts]
    assert not any(first.overlaps(second) for first, second in itertools.combinations(boxes, 2))


@pytest.mark.parametrize("names", [["exact"], ["auto"], ["exact", "auto"]])
def test_some_kinds_alone_are_drawn(names):
    figure = plans_against_budget("a title", {name: LADDERS[name] for name in names}, [])
    figure.draw_without_rendering()
    assert len(figure.axes) == 3


def test_plans_that_were_all_skipped_are_drawn():
    figure = plans_against_budget("a title", {"exact": ladder("exact", (None,) * 4, (0.0,) * 4)}, [BUDGETS[0]])
    figure.draw_without_rendering()
    assert [text.get_text() for text in figure.axes[0].texts] == ["asked", "exact"]
