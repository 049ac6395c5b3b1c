"""Runs of clients that nobody dealt: who holds nothing or next to nothing, who is held out, and whose the server's are."""

from collections import Counter
from itertools import chain

import numpy as np
import pytest
import torch

from fedact.federation import server
from fedact.reports.run.partition_figure import partition_figure
from fedact.simulate import main
from fedact.storage.run import load_run
from fedact.training.trained_model import trained_model
from fedact.training.workspace import close_workspaces
from tests.support.refusal import refused
from tests.support.runs import SMALL, rows, timeless
from tests.support.stopping import stopping_after

CLIENTS = SMALL.index("--clients")
RUN = [*SMALL[:CLIENTS], *SMALL[CLIENTS + 2 :], "--rounds", "2", "--layers", "0", "--method", "exact"]
WHO = {"ann": 40, "bob": 30, "cy, jr": 1, "dee": 2, "eve": 3, "fay": 20, "gus": 24}
"""How many of 120 examples each holds; hal holds none."""


@pytest.fixture
def who(tmp_path):
    names = np.random.default_rng(0).permutation(np.repeat(list(WHO), list(WHO.values())))
    file = tmp_path / "who.csv"
    file.write_text("example,client\n" + "".join(f'{place},"{name}"\n' for place, name in enumerate(names)) + ",hal\n")
    return file


def test_who_holds_nothing_is_skipped_and_who_holds_one_or_two_has_no_accuracy(who, tmp_path):
    out = tmp_path / "run"
    assert main([*RUN, "--partition", f"clients:{who},server=0.1", "--out", str(out)]) == 0
    header, written = rows(out)[0], [row for row in rows(out) if row["kind"] == "client"]
    names = header["client_names"]
    assert header["config"]["clients"] == len(names) == 7
    assert sorted([*names, *header["server_clients"]]) == sorted([*WHO, "hal"])
    assert header["held_out_clients"] == []
    assert len(written) == 14
    for row in written:
        name = names[row["client"]]
        held = WHO.get(name, 0)
        assert row["num_examples"] == (held if held < 3 else held - max(2, round(0.2 * held)))
        if held:
            assert (row["status"], row["accuracy"] is None) == ("head-only", held < 3)
        else:
            assert (row["status"], row["reason"], row["accuracy"]) == ("skipped", "it holds no example", None)
    run = load_run(out)
    held = run.partition.groupby("name")["examples"].sum().to_dict()
    assert held == {name: WHO[name] for name in names if name != "hal"}
    assert run.client_names == names
    figure = partition_figure(run.partition, clients_named=names)
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == names
    # A client in no message weighs nothing: the global model moved by the others alone.
    assert all(row["trained_by"] == {"classifier.1": 6} for row in rows(out) if row["kind"] == "round" and row["round"])


def test_the_global_model_is_tested_on_clients_that_never_trained(who, tmp_path):
    out = tmp_path / "run"
    assert main([*RUN, "--partition", f"clients:{who},held_out=0.4,server=0.1", "--out", str(out)]) == 0
    workspace, model = trained_model(load_run(out))
    experiment, held_out = workspace.experiment, workspace.experiment.held_out
    with torch.no_grad():
        x = experiment.preprocessing(np.asarray(held_out.examples.images))
        right = (model(x).argmax(1).numpy() == held_out.examples.labels).astype(float)
    last = rows(out)[-1]
    assert last["held_out_client_examples"] == len(right) == sum(WHO[name] for name in held_out.names)
    assert last["held_out_client_accuracy"] == pytest.approx(right.mean())
    assert last["worst_held_out_client_accuracy"] == pytest.approx(min(right[part].mean() for part in held_out.parts))
    header = rows(out)[0]
    assert header["held_out_clients"] == list(held_out.names)
    kinds = [header[name] for name in ("client_names", "server_clients", "held_out_clients")]
    assert Counter(chain(*kinds)) == Counter([*WHO, "hal"])


def test_a_run_goes_on_with_the_same_clients_and_with_no_others(who, tmp_path, monkeypatch, capsys):
    command = [*RUN, "--partition", f"clients:{who},held_out=0.2", "--clients", "4", "--flip"]
    assert main([*command, "--out", str(tmp_path / "whole")]) == 0
    with monkeypatch.context() as patch:
        patch.setattr(server.PartialFedAvg, "finish_round", stopping_after(1))
        assert main([*command, "--out", str(tmp_path / "run")]) == 130
    text = who.read_text()
    who.write_text(text.replace('"fay"', '"bob"', 1))
    close_workspaces()
    assert main(["--resume", str(tmp_path / "run")]) == 2
    assert "the examples were other clients'" in capsys.readouterr().err
    who.write_text(text)
    close_workspaces()
    assert main(["--resume", str(tmp_path / "run")]) == 0
    assert timeless(tmp_path / "run") == timeless(tmp_path / "whole")
    assert len(rows(tmp_path / "run")[0]["client_names"]) == 4


def test_an_npz_file_says_whose_its_examples_are_and_a_minimum_skips_small_clients(tmp_path):
    random, whose = np.random.default_rng(0), np.repeat([7, 9, 30, 101], [20, 20, 4, 20])
    images = random.integers(0, 256, (64, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(64) % 4
    np.savez(
        tmp_path / "own.npz", x_train=images, y_train=labels, x_test=images[:8], y_test=labels[:8],
        client_train=whose, client_test=np.full(8, 55),
    )  # fmt: skip
    command = [*RUN, "--dataset", "npz", "--data-dir", str(tmp_path / "own.npz"), "--sample-fraction", "0.67"]
    command += ["--partition", "clients:min_partition_size=5", "--out", str(tmp_path / "run")]
    assert main(command) == 0
    header, *written = rows(tmp_path / "run")
    assert sorted([*header["client_names"], *header["server_clients"]], key=int) == ["7", "9", "30", "101"]
    small = [row for row in written if row["kind"] == "client" and header["client_names"][row["client"]] == "30"]
    assert {(row["status"], row["reason"]) for row in small} <= {("skipped", "it holds 4 examples, min_partition_size is 5")}


def test_a_round_in_which_nobody_holds_anything_changes_nothing(tmp_path):
    who = tmp_path / "who.csv"
    who.write_text("example,client\n" + "".join(f"{place},0\n" for place in range(60)) + ",1\n,2\n,3\n")
    command = [*RUN, "--partition", f"clients:{who}", "--sample-fraction", "0.25", "--rounds", "6"]
    assert main([*command, "--out", str(tmp_path / "run")]) == 0
    rounds = [row for row in rows(tmp_path / "run") if row["kind"] == "round"]
    idle = [row["round"] for row in rounds[1:] if not row["trained_by"]]
    assert idle
    assert all(rounds[number]["accuracy"] == rounds[number - 1]["accuracy"] for number in idle)


@pytest.mark.parametrize(
    ("partition", "clients", "said"),
    [
        ("clients", None, "--dataset synthetic does not say whose its examples are"),
        (
            "clients:FILE",
            "9",
            "8 clients, 2 of them the server's (server=SHARE) and 0 held out (held_out=SHARE): 6",
        ),
        ("clients:FILE,held_out=0.9", None, "0 are left to train, not 1"),
        ("clients:FILE,server=0", None, "server=0 leaves the server no examples"),
        ("clients:nobody.csv", None, "nobody.csv cannot be read"),
        ("client", None, "did you mean 'clients'"),
    ],
)
def test_bad_clients_are_one_line(partition, clients, said, who, tmp_path, capsys):
    asked = [*RUN, "--partition", partition.replace("FILE", str(who)), *(["--clients", clients] if clients else [])]
    assert said in refused(capsys, asked, tmp_path / "run")


def test_budgets_by_client_are_for_as_many_as_there_are(who, tmp_path, capsys):
    asked = [*RUN, "--partition", f"clients:{who}", "--budget", "300KB/none"]
    assert "--budget lists 2 budgets for 6 clients" in refused(capsys, asked, tmp_path / "run")


@pytest.mark.slow
def test_workers_train_the_same_clients(who, tmp_path):
    command = [*RUN, "--partition", f"clients:{who},held_out=0.3", "--layers", "1"]
    for workers in ("1", "2"):
        assert main([*command, "--workers", workers, "--out", str(tmp_path / workers)]) == 0
    assert timeless(tmp_path / "1") == timeless(tmp_path / "2")
