"""Figures of comparisons stay readable with many cases, long names, one round and any sizes."""

import warnings
from itertools import pairwise
from typing import Any

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fedact import compare_plots
from fedact.comparison import compare_runs
from fedact.plots import png
from tests.test_compare_damage import write_run


def boxes(figure) -> tuple[Any, Any, Any]:

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    legend, axes = figure.legends[0].get_window_extent(renderer), figure.axes[0].get_window_extent(renderer)
    return figure.bbox, legend, axes


@pytest.mark.parametrize("draw", [compare_plots.accuracy_by_round, compare_plots.memory_by_round])
@pytest.mark.parametrize("count", [1, 12, 40])
def test_a_legend_takes_no_room_from_its_axes_and_is_not_cut_off(tmp_path, draw, count):
    methods = [f"hosvd:variance=0.{number},truncation=sequential,{'x' * 200}" for number in range(10, 10 + count)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole, legend, axes = boxes(draw(compare_runs([write_run(tmp_path / "run", methods=methods)]).cases))
    assert axes.height > 0.25 * 4.6 * 100
    assert legend.y1 <= axes.y0
    assert legend.x1 <= whole.x1 + 1
    assert legend.y0 >= whole.y0 - 1


def test_twelve_cases_have_twelve_looks(tmp_path):
    cases = compare_runs([write_run(tmp_path / "run", methods=[f"m{number}" for number in range(12)])]).cases
    lines = compare_plots.accuracy_by_round(cases).axes[0].lines
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == 12


def test_one_round_stands_at_a_whole_number(tmp_path):
    figure = compare_plots.memory_by_round(compare_runs([write_run(tmp_path / "run", rounds=1)]).cases)
    png(figure)
    low, high = figure.axes[0].get_xlim()
    assert [tick for tick in figure.axes[0].get_xticks() if low <= tick <= high] == [1]


@pytest.mark.parametrize("largest", [150, 1000, 10**5, 4 * 10**5, 10**9, 2**63 - 1])
def test_the_marks_of_an_axis_of_bytes_do_not_cover_each_other(largest):
    figure = Figure(figsize=(7, 4))
    axes = figure.add_subplot()
    axes.barh([0, 1], [100.0, float(largest)])
    axes.set_xscale("log")
    axes.set_xlim(left=50)
    compare_plots.size_axis(axes, "x")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    low, high = axes.get_xlim()
    labels = [tick.label1 for tick in axes.xaxis.get_major_ticks() if low <= tick.get_loc() <= high]
    extents = [label.get_window_extent(canvas.get_renderer()) for label in labels]
    assert len(labels) >= 2
    assert all(left.x1 < right.x0 for left, right in pairwise(extents))
