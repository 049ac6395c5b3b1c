"""Figures of comparisons stay readable with many cases, long names, one round and any sizes."""

import re
import warnings
from itertools import pairwise
from typing import Any

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fedact.cli.compare import run_compare
from fedact.config.errors import ConfigError
from fedact.reports.comparison import figures as compare_plots
from fedact.reports.comparison.cases import compare_runs
from fedact.reports.comparison.frontier_figure import MOST_NAMED
from fedact.reports.run import figures as plots
from fedact.reports.run.class_figure import MOST_CLASSES, last_class_iou
from fedact.reports.style import png, size_axis
from fedact.storage.run import load_run
from tests.support.records import CLASSES, SEGMENTATION, write_run, write_segmentation


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


@pytest.mark.parametrize("count", [1, MOST_NAMED, MOST_NAMED + 1])
def test_cases_are_named_at_their_points_up_to_twelve_and_below_the_figure_beyond(tmp_path, count):
    methods = [f"m{number}" for number in range(count)]
    figure = compare_plots.accuracy_against_memory(compare_runs([write_run(tmp_path / "run", methods=methods)]).cases)
    named = [text.get_text() for text in figure.axes[0].texts if text.get_text() != "frontier"]
    assert named == (methods if count <= MOST_NAMED else [])
    assert bool(figure.legends) == (count > MOST_NAMED)


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
    size_axis(axes, "x")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    low, high = axes.get_xlim()
    labels = [tick.label1 for tick in axes.xaxis.get_major_ticks() if low <= tick.get_loc() <= high]
    extents = [label.get_window_extent(canvas.get_renderer()) for label in labels]
    assert len(labels) >= 2
    assert all(left.x1 < right.x0 for left, right in pairwise(extents))


# Segmentation --------------------------------------------------------------------------------------------------------------


def words(figure) -> str:
    axes = figure.axes[0]
    title = figure.get_suptitle()
    return " | ".join([title, axes.get_title(loc="left"), axes.get_xlabel(), axes.get_ylabel()])


DRAWN = [compare_plots.accuracy_by_round, compare_plots.accuracy_against_memory, compare_plots.clients_spread]


@pytest.mark.parametrize("draw", DRAWN)
def test_a_score_has_its_tasks_name_in_every_figure(tmp_path, draw):
    segmentation, classification = write_segmentation(tmp_path / "s"), write_run(tmp_path / "c")
    said = {name: words(draw(compare_runs([run]).cases)) for name, run in (("s", segmentation), ("c", classification))}
    assert "mean iou" in said["s"].lower()
    assert "accuracy" not in said["s"].lower()
    assert "accuracy" in said["c"].lower()
    assert "iou" not in said["c"].lower()
    assert "test mean IoU (%)" in words(plots.accuracy_by_round(load_run(segmentation)))


def test_the_tables_and_the_report_say_mean_iou_and_the_csv_file_keeps_its_columns(tmp_path, capsys):
    folder = write_segmentation(tmp_path / "run")
    assert run_compare([folder], tmp_path / "out", 0.5, replication=True) == 0
    report, said = (tmp_path / "out" / "report.html").read_text(), capsys.readouterr().out
    prose = re.sub(r"base64,[^\"]*", "", report.split("<body>")[1].split("How to repeat it")[0])
    assert "accuracy" not in prose.lower()
    assert "accuracy" not in said.lower()
    assert "<th>mean IoU</th>" in prose
    assert "the first round whose mean IoU reaches the target" in prose
    assert "intersection over union" in prose
    assert 'alt="class-iou"' in report
    assert (tmp_path / "out" / "compare-class-iou.png").exists()
    assert "accuracy" in (tmp_path / "out" / "comparison.csv").read_text().splitlines()[0].split(",")


def test_a_classification_run_and_a_segmentation_run_stand_in_no_table_together(tmp_path):
    first, second = write_run(tmp_path / "first"), write_segmentation(tmp_path / "second")
    with pytest.raises(ConfigError, match=r"first is a run of classification and .*second one of segmentation"):
        run_compare([first, second], tmp_path / "out", None)
    assert not (tmp_path / "out").exists()
    # A run from before there were tasks classifies.
    assert len(compare_runs([first, write_run(tmp_path / "third", config={"task": "classification"})]).cases) == 2


def test_bars_by_class_are_those_of_the_last_round_in_the_order_of_vanillas(tmp_path):
    run = write_segmentation(tmp_path / "run")
    for figure in (compare_plots.class_iou(compare_runs([run]).cases), plots.class_iou_of_run(load_run(run))):
        axes = figure.axes[0]
        # hosvd's last row is the third of six, vanilla's the sixth; nobody has an IoU of poles.
        assert [label.get_text() for label in axes.get_yticklabels()] == ["road", "sky", "car"]
        bars = {group.get_label(): [bar.get_width() for bar in group] for group in axes.containers}
        assert bars == {"hosvd": pytest.approx([20, 70, 10]), "vanilla": pytest.approx([50, 40, 25])}
        assert {text.get_text() for text in axes.texts} == {"20.0", "70.0", "10.0", "50.0", "40.0", "25.0"}


def test_seeds_are_averaged_and_a_class_that_one_seed_did_not_see_is_the_others(tmp_path):
    write_segmentation(tmp_path / "run" / "seed-0", class_iou=lambda place: [0.2, 0.4, None, None])
    write_segmentation(tmp_path / "run" / "seed-1", seed=1, class_iou=lambda place: [0.6, None, None, 0.0])
    rounds = load_run(tmp_path / "run").rounds
    own = last_class_iou(rounds[rounds["method"] == "hosvd"], CLASSES)
    assert own == {"road": pytest.approx(0.4), "sky": 0.4, "car": None, "pole": 0.0}
    assert list(last_class_iou(rounds, ["twice", "twice", "x", "y"])) == ["class 0", "class 1", "class 2", "class 3"]
    assert list(last_class_iou(rounds, None)) == ["class 0", "class 1", "class 2", "class 3"]


def test_a_class_that_a_method_lacks_says_so_and_one_that_it_never_gets_says_zero(tmp_path):
    run = write_segmentation(tmp_path / "run", class_iou=lambda place: [0.5, 0.0, None if place < 3 else 0.3, None])
    axes = compare_plots.class_iou(compare_runs([run]).cases).axes[0]
    assert sorted(text.get_text() for text in axes.texts) == ["0.0", "0.0", "30.0", "50.0", "50.0", "not there"]


def test_runs_of_other_classes_stand_side_by_side_by_name(tmp_path):
    other = write_segmentation(
        tmp_path / "b", methods=("exact",), header={"classes": ["sky", "sea"]}, class_iou=lambda place: [0.3, 0.9]
    )
    axes = compare_plots.class_iou(compare_runs([write_segmentation(tmp_path / "a"), other]).cases).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["road", "sky", "car", "sea"]


def test_runs_without_an_iou_by_class_have_no_such_figure(tmp_path, capsys):
    assert compare_plots.class_iou(compare_runs([write_run(tmp_path / "c")]).cases) is None
    silent = write_run(tmp_path / "s", **SEGMENTATION)
    assert compare_plots.class_iou(compare_runs([silent]).cases) is None
    assert run_compare([silent], tmp_path / "out", None) == 0
    assert not (tmp_path / "out" / "compare-class-iou.png").exists()


@pytest.mark.parametrize(("methods", "classes"), [(1, 1), (3, 11), (10, 34), (12, 254)])
def test_a_figure_by_class_stays_readable_however_many_there_are(tmp_path, methods, classes):
    names = [f"class of things number {number}, _{'x' * 50}" for number in range(classes)]
    run = write_segmentation(
        tmp_path / "run",
        methods=[f"hosvd:variance=0.{number},{'x' * 90}" for number in range(10, 10 + methods)],
        header={"classes": names},
        class_iou=lambda place: [(number + place) % 100 / 100 for number in range(classes)],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole, legend, axes = boxes(figure := compare_plots.class_iou(compare_runs([run]).cases))
    assert legend.y1 <= axes.y0
    assert legend.x1 <= whole.x1 + 1
    assert axes.width > 0.5 * whole.width
    labels = [label.get_window_extent() for label in figure.axes[0].get_yticklabels()]
    assert len(labels) == min(classes, MOST_CLASSES)
    assert all(below.y1 <= above.y0 for above, below in pairwise(labels))
