"""Figures of long runs and of names in any script: marks stay apart, and no letter is missing from the font."""

import warnings

import numpy as np
import pytest
from matplotlib.figure import Figure

from fedact.reports.comparison import figures as comparison
from fedact.reports.comparison.cases import compare_runs
from fedact.reports.run import figures as of_run
from fedact.reports.run.predictions import predictions
from fedact.reports.safe_text import drawable, figure_label
from fedact.reports.style import MOST_MARKS, png
from fedact.storage.run import load_run
from tests.support.records import write_run, write_segmentation

WRITTEN = {
    "Straße, café, дорога, δρόμος": "Straße, café, дорога, δρόμος",
    "猫犬": "<U+732B U+72AC>",
    "sky 空": "sky <U+7A7A>",
    "🦊": "<fox face>",
    "🦊🚒 home": "<fox face fire engine> home",
    "": "",
}


@pytest.mark.parametrize(("name", "drawn"), WRITTEN.items())
def test_a_letter_that_the_font_lacks_has_a_readable_substitute(name, drawn):
    assert drawable(name) == drawn


def test_names_in_any_script_are_drawn_without_a_warning(tmp_path):
    names = ["道路", "🚗 $x^2", "سماء", "\U00013000 pole"]
    run = write_segmentation(tmp_path / "run", header={"classes": names})
    truth = np.arange(4, dtype=np.uint8).repeat(16).reshape(1, 8, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        png(of_run.class_iou_of_run(load_run(run)))
        png(comparison.class_iou(compare_runs([run]).cases))
        png(predictions(np.zeros((1, 8, 8, 3), np.uint8), truth, {"名前": truth}, names))
    assert figure_label("道路 $") == r"<U+9053 U+8DEF> \$"


@pytest.mark.parametrize("rounds", [3, 29, 400])
def test_marks_of_many_rounds_stay_apart_and_every_round_is_drawn(rounds, tmp_path):
    run = write_run(tmp_path / "run", rounds=rounds, clients=1, accuracy=0.5)
    cases = compare_runs([run]).cases
    drawn: list[Figure] = [draw(load_run(run)) for draw in (of_run.accuracy_by_round, of_run.memory_by_round)]
    drawn += [draw(cases) for draw in (comparison.accuracy_by_round, comparison.memory_by_round)]
    for figure in drawn:
        (line,) = [line for line in figure.axes[0].lines if len(line.get_xdata()) >= rounds]
        points = len(line.get_xdata())
        assert points in (rounds, rounds + 1)
        assert len(range(0, points, int(line.get_markevery()))) <= MOST_MARKS
        assert line.get_markevery() == 1 or points > MOST_MARKS
