"""A fleet of unequal clients: who trained what, how it looks in table and figures, and measuring only now and then."""

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import fedact
from fedact.federation import server
from fedact.models import make_model
from fedact.nn.surgery import trained_layers
from fedact.reports.run import figures as plots
from fedact.reports.run import tables as report
from fedact.simulate import main
from fedact.storage.rows import ROUND_FIELDS
from fedact.storage.run_folder import RunFolder
from tests.support.planned import plan_row
from tests.support.records import HEADER, client, round_
from tests.support.runs import TINY, rows, timeless
from tests.support.stopping import stopping_after

MIX = "1KB:1,300KB:1,420KB:2,none:1"


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Path:
    """A finished run of clients that are skipped, train little, more and all they like; measured every third round."""
    folder = tmp_path_factory.mktemp("run") / "mixed"
    mix = ["--clients", "5", "--budget", MIX, "--layers", "auto", "--method", "vanilla", "--rounds", "5"]
    assert main([*TINY, *mix, "--evaluate-every", "3", "--sample-fraction", "0.6", "--out", str(folder)]) == 0
    return folder


def test_each_layer_says_how_many_clients_trained_it(mixed):
    plans, model = json.loads((mixed / "plans.json").read_text())["vanilla"], make_model("mobilenet_v2", 10, 0.25)
    seen = []
    for row in (row for row in rows(mixed) if row["kind"] == "round"):
        took_part = [
            r for r in rows(mixed) if r["kind"] == "client" and r["round"] == row["round"] and r["status"] != "skipped"
        ]
        layers = [name for r in took_part for name in trained_layers(model, plans[r["plan"]]["layers"])]
        assert row["trained_by"] == Counter(layers)
        seen.append(len(set(row["trained_by"].values())))
    assert max(seen) > 1


def test_no_layer_was_trained_before_training(mixed):
    assert rows(mixed)[1]["trained_by"] == {}


def test_depths_follow_the_budgets(mixed):
    clients = fedact.load_run(mixed).clients
    depths = clients.groupby(clients["budget_bytes"].fillna(10**9))["trained_layers"].agg(["min", "max"])
    assert (depths["min"] == depths["max"]).all()
    assert depths["max"].is_monotonic_increasing
    assert depths["max"].nunique() > 2


# Measuring now and then ----------------------------------------------------------------------------------------------------


def test_the_global_model_is_measured_before_at_every_nth_round_and_last(mixed):
    found = {row["round"]: (row["accuracy"], row["loss"]) for row in rows(mixed) if row["kind"] == "round"}
    assert {number for number, figures in found.items() if figures != (None, None)} == {0, 3, 5}
    assert None not in [figure for number in (0, 3, 5) for figure in found[number]]
    assert all(list(row) == list(ROUND_FIELDS) for row in rows(mixed) if row["kind"] == "round")


def test_measuring_less_often_changes_nothing_else(mixed, tmp_path):
    config = ["--config", str(mixed / "config.toml"), "--evaluate-every", "1"]
    assert main([*config, "--out", str(tmp_path / "often")]) == 0
    seldom, often = timeless(mixed), timeless(tmp_path / "often")
    assert all(row["accuracy"] is not None for row in often if row["kind"] == "round")
    scores = dict.fromkeys(("accuracy", "client_accuracy", "unheld_accuracy", "forgotten", "test_examples", "loss"))
    assert [{**row, **scores} if row["kind"] == "round" else row for row in often] == [
        {**row, **scores} if row["kind"] == "round" else row for row in seldom
    ]
    measured = [row for row in seldom if row["kind"] == "round" and row["accuracy"] is not None]
    assert all(row in often for row in measured)


def test_resuming_between_two_measurements_ends_the_same(mixed, tmp_path, monkeypatch):
    monkeypatch.setattr(server.PartialFedAvg, "finish_round", stopping_after(4))
    assert main(["--config", str(mixed / "config.toml"), "--out", str(tmp_path / "run")]) == 130
    monkeypatch.undo()
    assert main(["--resume", str(tmp_path / "run")]) == 0
    assert timeless(tmp_path / "run") == timeless(mixed)


# Table and figures ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path) -> fedact.storage.run.Run:
    """A run of two rounds on paper: two budgets far apart and a client without one; round 1 was not measured."""
    kept = [{"method": "exact:derive=3"}, {"method": "transform:bits=1"}, {"method": "exact"}]
    folder, plan = RunFolder(tmp_path), {"reason": "micro-batch 8 to 2", "layers": 3, "kept": kept}
    folder.append([{**HEADER, "config": {"scope": "saved"}}, round_(0)])
    for number, accuracy in ((1, None), (2, 0.75)):
        held = [(0, 1_000, 900), (1, 1_000, 700), (2, 64_000, 50_000), (3, None, 90_000)]
        clients = [client(number, which, budget_bytes=budget, saved_bytes=saved) for which, budget, saved in held]
        folder.append([*clients, round_(number, accuracy=accuracy)])
    plans = {
        "64000": {**plan, "budget_bytes": 64_000, "reason": None},
        "none": {**plan, "budget_bytes": None, "layers": 5},
        "1000": {**plan, "budget_bytes": 1_000, "layers": 0},
        "1000@2": {**plan, "budget_bytes": 1_000, "layers": 0, "reason": "micro-batch 8 to 1", "kept": []},
    }
    folder.plans.write_text(json.dumps({"exact": {key: plan_row(**each) for key, each in plans.items()}}))
    return fedact.load_run(tmp_path)


def drawn(figure) -> list[tuple[list[float], list[float]]]:
    """Return the points of each drawn line with marks."""
    lines = [line for line in figure.axes[0].lines if line.get_marker() != "None"]
    return [(list(line.get_xdata()), list(line.get_ydata())) for line in lines]


def test_a_round_that_was_not_measured_is_passed_over(run):
    assert run.rounds["accuracy"].tolist()[::2] == [0.5, 0.75]
    assert np.isnan(run.rounds["accuracy"].tolist()[1])
    figure = plots.accuracy_by_round(run)
    assert drawn(figure) == [([0, 2], [50.0, 75.0])]
    assert figure.axes[0].get_legend().get_texts()[0].get_text() == "exact, 75.0 % at the end"


def test_each_budget_has_its_line_of_the_largest_client(run):
    figure = plots.memory_by_round(run)
    assert drawn(figure) == [([1, 2], [900.0, 900.0]), ([1, 2], [50e3, 50e3]), ([1, 2], [90e3, 90e3])]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["exact"]
    assert {text.get_text() for text in figure.axes[0].texts} == {"budget 1,000 bytes", "budget 64,000 bytes"}
    low, high = figure.axes[0].get_ylim()
    assert low < 900 < 90_000 < high


@pytest.mark.parametrize(("budgets", "scale"), [([1_000, 7_000], "linear"), ([1_000, 64_000], "log"), ([1_000], "linear")])
def test_budgets_far_apart_are_drawn_on_a_logarithmic_axis(tmp_path, budgets, scale):
    clients = [client(1, which, budget_bytes=size, saved_bytes=size) for which, size in enumerate(budgets)]
    RunFolder(tmp_path).append([HEADER, round_(0), *clients, round_(1)])
    axes = plots.memory_by_round(fedact.load_run(tmp_path)).axes[0]
    assert axes.get_yscale() == scale
    assert ("by budget" in axes.get_title(loc="left")) == (len(budgets) > 1)


def test_peaks_stand_above_with_the_floor_and_the_budget_where_it_bounds(tmp_path):
    row = client(1, 0, budget_bytes=60_000, saved_bytes=50_000, peak_bytes=400_000, floor_bytes=100_000)
    for scope, marked in (("saved", 1), ("peak", 0)):
        (tmp_path / scope).mkdir()
        RunFolder(tmp_path / scope).append([{**HEADER, "config": {"scope": scope}}, round_(0), row, round_(1)])
        panels = plots.memory_by_round(fedact.load_run(tmp_path / scope)).axes
        assert [axes.get_ylabel() for axes in panels] == ["peak bytes of a client", "saved bytes of a client"]
        words = [{text.get_text() for text in axes.texts} for axes in panels]
        assert "floor 100,000 bytes" in words[0]
        assert ["budget 60,000 bytes" in each for each in words] == [place == marked for place in range(2)]


def shown(run) -> dict[str, str]:
    names, figures = (list(column.cells) for column in report.summary(run).columns)
    return dict(zip(names, figures, strict=True))


def test_the_table_says_what_became_of_each_budget(run):
    table = shown(run)
    assert table["accuracy after"] == "75.0 %"
    assert table["what gave way"] == "at 1,000: micro-batch 8 to 1; at 64,000: nothing; at no bound: micro-batch 8 to 2"
    mixed = "2 of 3 exactly, 1 of 3 by transform"
    assert table["saved tensors"] == f"at 1,000: none; at 64,000: {mixed}; at no bound: {mixed}"
    assert table["new plans during training"] == "before round 2"
    assert "peak bytes (not bounded by the budget)" in table
    assert re.fullmatch(r"(yes|NO) \(\d+ of \d+\)", table["budget held"])
    assert table["trained convolutions"] == "0 to 5"
    assert table["budget"] == "1,000 to 64,000"


def test_figures_of_a_real_run_are_drawn(mixed):
    assert (mixed / "memory.png").stat().st_size > 10_000
    assert drawn(plots.accuracy_by_round(fedact.load_run(mixed)))[0][0] == [0, 3, 5]
    assert shown(fedact.load_run(mixed))["new plans during training"] == "none"
