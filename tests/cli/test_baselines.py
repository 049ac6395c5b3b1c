"""Is federating worth it: each client alone, and all examples in one place, as rows beside the methods'."""

import json

import numpy as np
import pytest
import torch

from fedact.config.errors import ConfigError
from fedact.config.loading import make_config
from fedact.federation import server
from fedact.reports.comparison.cases import compare_runs, styles_of
from fedact.reports.comparison.figures import accuracy_by_round, clients_spread
from fedact.reports.comparison.statistics import target_accuracy
from fedact.reports.run import figures as plots
from fedact.simulate import main
from fedact.storage import checkpoints
from fedact.storage.run import load_run
from fedact.storage.run_folder import RunFolder
from fedact.training.trained_model import trained_model
from fedact.training.workspace import prepare
from tests.support.refusal import refused
from tests.support.runs import SMALL, rows, timeless
from tests.support.stopping import stopping_after

BOTH = ["--baseline", "local", "--baseline", "central"]
RUN = [*SMALL, "--clients", "3", "--rounds", "2", "--layers", "1", "--method", "exact", "--budget", "none"]
SAME = ("accuracy", "loss", "train_loss", "steps", "num_examples", "peak_bytes", "saved_bytes", "status")


def of(folder, method: str, kind: str = "client") -> list[dict]:
    return [row for row in rows(folder) if row["kind"] == kind and row["method"] == method]


def test_of_one_client_all_three_are_the_same_training(tmp_path):
    assert main([*RUN, "--clients", "1", *BOTH, "--out", str(tmp_path)]) == 0
    for kind in ("client", "round"):
        one, local, central = (
            [{name: row.get(name) for name in SAME} for row in of(tmp_path, method, kind)]
            for method in ("exact", "local:exact", "central:exact")
        )
        assert one == local == central
        assert len(one) == (2 if kind == "client" else 3)
    clients = {method: of(tmp_path, method) for method in ("local:exact", "central:exact")}
    assert [row["upload_bytes"] for row in clients["local:exact"]] == [0, 0]
    assert [row["download_bytes"] > 0 for row in clients["local:exact"]] == [True, False]
    # Pictures of 32 x 32 pixels in three bytes, and labels of eight.
    raw = clients["central:exact"][0]["num_examples"] * (32 * 32 * 3 + 8)
    assert [(row["upload_bytes"], row["download_bytes"]) for row in clients["central:exact"]] == [(raw, 0), (0, 0)]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with both baselines, mixed budgets, and a server that pulls, blurs and loses updates."""
    folder = tmp_path_factory.mktemp("baselines") / "run"
    command = [*RUN, *BOTH, "--budget", "none:1,400KB:2", "--strategy", "fedprox", "--privacy", "local_dp:clipping_norm=5"]
    assert main([*command, "--faults", "drop=0.5", "--out", str(folder)]) == 0
    return folder


def test_the_score_of_clients_alone_is_the_mean_of_their_models(run):
    workspace = prepare(make_config(load_run(run).config))
    experiment, folder = workspace.experiment, RunFolder(run)
    x = experiment.preprocessing(np.asarray(experiment.test.images))
    shares = []
    for client in range(3):
        (file,) = [
            file for file in folder.client_checkpoints("local:exact") if f"client-{client:06d}-round-0002" in file.name
        ]
        model = workspace.model_with(checkpoints.load(file))
        with torch.no_grad():
            shares.append((model(x).argmax(1).numpy() == experiment.test.labels).mean())
            own = experiment.parts[client][1]
            right = model(experiment.preprocessing(np.asarray(experiment.train.images[own]))).argmax(1).numpy()
        (row,) = [row for row in of(run, "local:exact") if (row["client"], row["round"]) == (client, 2)]
        assert row["accuracy"] == pytest.approx((right == experiment.train.labels[own]).mean())
    last = of(run, "local:exact", "round")[-1]
    assert last["accuracy"] == pytest.approx(np.mean(shares))
    accuracies = [row["accuracy"] for row in of(run, "local:exact") if row["round"] == 2]
    assert last["worst_client_accuracy"] == min(accuracies)
    assert last["mean_client_accuracy"] == pytest.approx(np.mean(accuracies))
    with pytest.raises(ConfigError, match="no model of all clients"):
        trained_model(load_run(run), "local:exact")


def test_one_place_has_all_examples_the_largest_budget_and_as_many_epochs(run):
    workspace, model = trained_model(load_run(run), "central:exact")
    experiment = workspace.experiment
    training, held_out = (np.concatenate(side) for side in zip(*experiment.parts, strict=True))
    found = of(run, "central:exact")
    assert [row["client"] for row in found] == [0, 0]
    assert {(row["num_examples"], row["steps"], row["budget_bytes"]) for row in found} == {
        (len(training), -(-len(training) // 8), None)
    }
    last = of(run, "central:exact", "round")[-1]
    with torch.no_grad():
        x = experiment.preprocessing(np.asarray(experiment.train.images[held_out]))
        right = (model(x).argmax(1).numpy() == experiment.train.labels[held_out]).astype(float)
    each = [right[part].mean() for part in np.split(np.arange(len(right)), np.cumsum(experiment.parts.sizes()[1])[:-1])]
    assert found[-1]["accuracy"] == pytest.approx(right.mean())
    assert last["worst_client_accuracy"] == pytest.approx(min(each))
    assert last["mean_client_accuracy"] == pytest.approx(np.mean(each))


def test_nothing_of_a_server_touches_a_baseline(run, tmp_path):
    plans = json.loads((run / "plans.json").read_text())
    assert set(plans) == {"exact", "local:exact", "central:exact"}
    assert set(plans["central:exact"]) == {"none"}
    assert all(plan["copy_bytes"] > 0 for plan in plans["exact"].values())
    assert all(plan["copy_bytes"] == 0 for name in plans if ":" in name for plan in plans[name].values())
    baselines = [row for row in rows(run) if ":" in row.get("method", "")]
    assert not any(row.get("fault") or row.get("copy_bytes") for row in baselines)
    # Without that server the baselines are the same rows.
    assert main([*RUN, *BOTH, "--budget", "none:1,400KB:2", "--out", str(tmp_path / "plain")]) == 0
    plain = [row for row in timeless(tmp_path / "plain") if ":" in row["method"]]
    drop = ("device_bytes",)
    assert [{k: v for k, v in row.items() if k not in drop} for row in plain] == [
        {k: v for k, v in row.items() if k not in drop} for row in timeless(run) if ":" in row["method"]
    ]


def test_figures_and_tables_tell_baselines_apart(run):
    comparison = compare_runs([run])
    cases = {case.method: case for case in comparison.cases}
    styles = dict(zip(cases, styles_of(comparison.cases), strict=True))
    assert len({style["color"] for style in styles.values()}) == 1
    assert [style["linestyle"] for style in styles.values()] == ["-", "--", ":"]
    assert target_accuracy(comparison.cases) == 0.95 * cases["exact"].rounds["accuracy"].iloc[-1]
    assert len(accuracy_by_round(comparison.cases).axes[0].lines) == 3
    assert [text.get_text() for text in clients_spread(comparison.cases).axes[0].get_yticklabels()] == [
        "exact",
        "local:exact",
    ]
    assert not plots.save_figures(load_run(run), run)


def test_a_stopped_run_goes_on_and_baselines_may_come_later(tmp_path, monkeypatch):
    command = [*RUN, "--sample-fraction", "0.67", "--evaluate-every", "2"]
    assert main([*command, *BOTH, "--out", str(tmp_path / "whole")]) == 0
    assert main([*command, "--out", str(tmp_path / "run")]) == 0
    with monkeypatch.context() as patch:
        patch.setattr(server.PartialFedAvg, "finish_round", stopping_after(1))
        for baselines in (["--baseline", "local"], BOTH):
            assert main([*command, *baselines, "--out", str(tmp_path / "run")]) == 130
            # Left by a process that was killed before its rows were written.
            late = RunFolder(tmp_path / "run").client_checkpoint("local:exact", 0, 2)
            late.write_bytes(b"")
    assert main(["--resume", str(tmp_path / "run")]) == 0
    for method in ("exact", "local:exact", "central:exact"):
        one, other = ([row for row in timeless(tmp_path / name) if row["method"] == method] for name in ("whole", "run"))
        assert one == other
    central = [row for row in rows(tmp_path / "run") if row.get("method") == "central:exact" and row["kind"] == "client"]
    exact = [row for row in rows(tmp_path / "run") if row.get("method") == "exact" and row["kind"] == "client"]
    for row in central:
        assert row["num_examples"] == sum(each["num_examples"] for each in exact if each["round"] == row["round"])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--baseline", "locl"], "unknown baseline 'locl': allowed are central, local; did you mean 'local'?"),
        (["--baseline", "local", "--baseline", "local"], "each baseline may be given once"),
        (["--method", "local:exact"], "write --method exact --baseline local"),
        (["--baseline", "central", "--runtime", "flower"], "--baseline central is for a simulation"),
    ],
)
def test_bad_baselines_are_one_line(given, said, tmp_path, capsys):
    assert said in refused(capsys, given, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("way", [["--workers", "2"], ["--runtime", "ray"]], ids=" ".join)
def test_other_processes_write_the_same_rows(way, tmp_path):
    if way[0] == "--runtime":
        pytest.importorskip("ray")
    assert main([*RUN, *BOTH, "--out", str(tmp_path / "one")]) == 0
    assert main([*RUN, *BOTH, *way, "--out", str(tmp_path / "other")]) == 0
    assert timeless(tmp_path / "one") == timeless(tmp_path / "other")
