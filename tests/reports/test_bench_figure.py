"""The bench's figure: the frontier is the Pareto set, the lines hold the data, no label covers another."""

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from fedact.compression import METHODS, at, families, family, make_method, method_name, swept
from fedact.measure.gradient_error import GradientError
from fedact.measure.methods import MethodMeasurement
from fedact.measure.rate_distortion import LimitPoint
from fedact.reports.bench.figures import LIMIT, RING, curves, error_against_bytes, recomputes
from fedact.reports.label_placement import AROUND_LINE, AROUND_POINT, obstacles, write
from fedact.reports.style import frontier

POINTS = st.lists(st.tuples(st.integers(1, 9).map(float), st.integers(0, 9).map(float)), min_size=1, max_size=12)


def measured(method: str, saved: int, error: float, room: int | None = None) -> MethodMeasurement:
    errors = GradientError(method, saved, 0, saved, saved, 1, {}, {}, {}, {}, error)
    return MethodMeasurement(errors, None, None, None, 1, 1.0, saved, room_bytes=room)


FOUND = [
    measured("vanilla", 28_000_000, 0.0), measured("exact", 7_000_000, 1e-13), measured("quantize", 800_000, 0.1),
    measured("quantize:bits=4", 1_600_000, 0.01), measured("hosvd:variance=0.8", 500_000, 0.3),
    measured("hosvd:variance=0.5", 300_000, 0.6), measured("hosvd:variance=0.8,bits=8", 400_000, 0.3),
]  # fmt: skip


@given(POINTS)
def test_the_frontier_is_what_no_other_point_beats(points):
    def beaten(point):
        return any(other != point and other[0] <= point[0] and other[1] <= point[1] for other in points)

    assert frontier(points) == sorted({point for point in points if not beaten(point)})


def test_methods_that_differ_in_the_swept_setting_are_one_curve():
    found = curves(FOUND)
    assert list(found) == ["vanilla", "exact", "quantize", "hosvd", "hosvd:bits=8"]
    assert found["hosvd"] == [((300_000, 0.6), "0.5"), ((500_000, 0.3), "0.8")]
    assert found["exact"] == [((7_000_000, 0.0), "")]


def test_the_lines_hold_the_data_and_the_rail_the_exact_ones():
    _, main, _, rail = error_against_bytes("a title", FOUND).axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in main.lines}
    assert lines["hosvd"] == [[300_000, 0.6], [500_000, 0.3]]
    assert lines["quantize"] == [[800_000, 0.1], [1_600_000, 0.01]]
    assert [[7_000_000, 0.0]] in [line.get_xydata().tolist() for line in rail.lines]
    corners = [tuple(point) for point in lines["frontier"]]
    assert corners[:4] == [(300_000, 0.6), (400_000, 0.3), (800_000, 0.1), (1_600_000, 0.01)]
    assert corners[4][0] == 7_000_000


def test_every_family_is_named_once_and_no_label_covers_another():
    figure = error_against_bytes("a title", FOUND)
    figure.draw_without_rendering()
    peak, saved, peak_rail, saved_rail = figure.axes
    labels = [text for axes in (saved, saved_rail) for text in axes.texts]
    names = [text.get_text() for text in labels]
    assert all(names.count(name) == 1 for name in curves(FOUND))
    # Over peak bytes a name is written where there is room.
    labels += [text for axes in (peak, peak_rail) for text in axes.texts]
    boxes = [Text.get_window_extent(text) for text in labels]
    assert not any(first.overlaps(second) for first, second in itertools.combinations(boxes, 2))
    assert figure.get_suptitle().endswith("along the lines: bits 2 to 4; variance 0.5 to 0.8")


@pytest.mark.parametrize("dpi", [50, 100, 300])
def test_a_label_keeps_as_many_points_from_a_marker_at_every_resolution(dpi):
    figure = Figure(figsize=(4, 3), dpi=dpi)
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1])
    boxes = list(obstacles(axes, [(0, 0), (1, 1)]))
    around_points, along_the_line = boxes[:2], boxes[2:]
    assert [box.width * 72 / dpi for box in around_points] == pytest.approx([2 * AROUND_POINT] * 2)
    assert {round(box.width * 72 / dpi, 6) for box in along_the_line} == {2 * AROUND_LINE}
    middles = [((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2) for box in around_points]
    assert middles == [pytest.approx(tuple(axes.transData.transform(point))) for point in ((0, 0), (1, 1))]


def test_a_figure_without_exact_or_without_lossy_methods_is_drawn():
    for found in (FOUND[:2], FOUND[2:], FOUND[:1]):
        assert error_against_bytes("a title", found).axes


def test_every_value_worth_drawing_is_a_setting_and_stays_in_its_family():
    for method in families():
        assert all(family(at(method, value)) == method for value in method.traits.sweep.values)
    names = swept()
    assert len(set(names)) == len(names)
    assert {name.partition(":")[0] for name in names} == set(METHODS)
    assert all(method_name(make_method(name)) == name for name in names)


def test_more_values_take_more_bytes():
    for method in families():
        sizes = [at(method, value).predicted_bytes((8, 16, 14, 14)) for value in method.traits.sweep.values]
        assert sizes == sorted(sizes)


def test_labels_keep_clear_of_lines_and_points_where_there_is_room():
    figure = error_against_bytes("a title", FOUND)
    figure.draw_without_rendering()
    for axes in figure.axes:
        boxes = [Text.get_window_extent(text) for text in axes.texts]
        for line in axes.lines:
            if line.get_label() in curves(FOUND):
                taken = list(obstacles(axes, line.get_xydata().tolist()))
                assert not any(box.overlaps(other) for box in boxes for other in taken)


def test_a_label_that_finds_no_room_is_left_out_unless_it_must_be_there():
    axes = Figure().add_subplot()
    everything = Bbox.from_extents(-1e6, -1e6, 1e6, 1e6)
    write("left out", [(axes, (0.5, 0.5))], [everything], must=False)
    write("there", [(axes, (0.5, 0.5))], [everything])
    assert [text.get_text() for text in axes.texts] == ["there"]


def test_a_variant_has_its_methods_colour_and_another_line():
    _, main, _, _ = error_against_bytes("a title", FOUND).axes
    lines = {line.get_label(): line for line in main.lines}
    plain, variant = lines["hosvd"], lines["hosvd:bits=8"]
    assert plain.get_color() == variant.get_color() != lines["quantize"].get_color()
    assert plain.get_linestyle() != variant.get_linestyle()


def test_what_runs_in_streams_has_a_curve_of_its_own_in_its_methods_colour_and_rings():
    found = [*FOUND, measured("quantize:bits=4", 90_000, 0.02, 1000), measured("exact", 100_000, 0.0, 1000)]
    names = [*curves(FOUND), "quantize in streams", "exact in streams"]
    assert list(curves(found)) == names
    peak, main, _, rail = error_against_bytes("a title", found).axes
    lines = {line.get_label(): line for line in main.lines}
    assert lines["quantize in streams"].get_color() == lines["quantize"].get_color()
    ringed = [line.get_xydata().tolist() for axes in (main, rail) for line in axes.lines if line.get_markersize() == RING]
    assert ringed == [[[90_000, 0.02]], [[100_000, 0.0]]]
    # Peaks that are far apart are named too.
    assert {text.get_text() for text in peak.texts} >= {"quantize", "quantize in streams"}


def test_peak_bytes_stand_before_saved_bytes():
    found = [measured("quantize", 800_000, 0.1), replace_peak(measured("hosvd", 500_000, 0.3), 9_000_000)]
    figure = error_against_bytes("a title", found, floor_bytes=200_000)
    peak, saved, peak_rail, saved_rail = figure.axes
    assert (peak_rail.get_xlabel(), saved_rail.get_xlabel()) == ("peak bytes of a step", "saved bytes of a step")
    lines = [{line.get_label(): line.get_xydata().tolist() for line in axes.lines} for axes in (peak, saved)]
    assert [each["hosvd"] for each in lines] == [[[9_000_000, 0.3]], [[500_000, 0.3]]]
    assert [200_000, 200_000] in [list(line.get_xdata()) for line in peak.lines]
    assert "floor, one image" in [text.get_text() for text in peak.texts]


def replace_peak(row: MethodMeasurement, peak: int) -> MethodMeasurement:
    return replace(row, gradient_error=replace(row.gradient_error, peak_bytes=peak))


def test_what_recomputes_has_rings_and_the_limits_say_that_they_are_a_model():
    found = [*FOUND, measured("exact:derive=2", 900_000, 0.0), measured("checkpoint", 800_000, 0.0)]
    sizes_and_errors = ((1e3, 0.55), (1e5, 0.5), (2e5, 0.05), (1e6, 1e-6))
    limits = [LimitPoint(size, 1.1 * size, error) for size, error in sizes_and_errors]
    figure = error_against_bytes("a title", found, limits)
    _, main, _, rail = figure.axes
    assert [recomputes(name) for name in ("vanilla", "exact", "exact:derive=2", "checkpoint")] == [False, False, True, True]
    ringed = [line.get_xydata().tolist() for line in rail.lines if line.get_markersize() == RING]
    assert ringed == [[[900_000, 0.0]], [[800_000, 0.0]]]
    # Only where errors were measured, from 0.6 to 0.01, and bytes from a tenth of 300,000.
    drawn = [line.get_xydata().tolist() for line in main.lines if line.get_gid() == LIMIT]
    assert drawn == [[[factor * 1e5, 0.5], [factor * 2e5, 0.05]] for factor in (1, 1.1)]
    words = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "a model, not a bound" in words[0]
    assert "0.255 bit" in words[1]
    assert "again" in words[2]
