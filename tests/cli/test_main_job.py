"""The README's first command, as a newcomer runs it: minutes, hence slow."""

import json
import os
from pathlib import Path

import pytest

import fedact
from fedact.simulate import main

BUDGET = 512_000


@pytest.mark.slow
def test_the_main_job_learns_under_its_budget_with_convolutions_really_trained_and_sent(tmp_path):
    # CI has just run the README's first command.
    folder = Path(os.environ.get("FEDACT_MAIN_JOB") or tmp_path / "run")
    if not folder.exists():
        assert main(["--clients", "20", "--budget", "512KB", "--out", str(folder)]) == 0
    run = fedact.load_run(folder)
    assert (run.config["clients"], run.config["budget"], run.config["rounds"]) == (20, "512KB", 10)
    rounds = run.rounds.sort_values("round")
    before, after = rounds.iloc[0], rounds.iloc[-1]
    # Pretraining knows the classes that no client holds: the whole test set has less to gain than the clients' classes.
    assert after["accuracy"] >= 0.80
    assert after["accuracy"] - before["accuracy"] >= 0.05
    assert after["client_accuracy"] - before["client_accuracy"] >= 0.20
    assert (run.clients["status"] == "ok").mean() >= 0.9
    assert (run.clients["peak_bytes"] <= BUDGET).all()
    kept = json.loads((folder / "plans.json").read_text())["hosvd"][str(BUDGET)]["kept"]
    assert len(kept) > 1
    assert all(item["method"].startswith(("hosvd:ranks=", "exact")) for item in kept)
    assert all(item["method"].startswith("hosvd") for item in kept if len(item["shape"]) == 4)
