"""Plans and scores that several processes make are those that one makes."""

from dataclasses import replace

import numpy as np
import pytest

from fedact.config.loading import make_config
from fedact.federation.arrays import record_of
from fedact.federation.global_evaluation import count_in, evaluate_on_test_set
from fedact.federation.plan_tasks import make_all_plans, replan_all
from fedact.federation.shared_records import SharedRecords
from fedact.federation.worker_grid import PRELOAD
from fedact.models import pretraining
from fedact.processes.pool import Workers
from fedact.training.initial_weights import fit_ahead
from fedact.training.workspace import close_workspaces, prepare, workspace_of
from tests.support.runs import FEW_SETTINGS

SETTINGS = {
    **FEW_SETTINGS, "budget": "320KB:2,500KB:1", "threads": 1, "width": 0.1, "max_examples": 120, "calibration": 32,
    "max_test_examples": 300, "layers": 2, "lr": "auto",
}  # fmt: skip
METHODS = ["exact", "hosvd:variance=0.8"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def workers(cache):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDACT_CACHE", cache)
        pool = Workers(2, 1, PRELOAD)
    with pool:
        yield pool


@pytest.fixture(scope="module")
def key():
    return make_config(SETTINGS).model_dump_json()


def test_plans_of_a_choice_by_trials_and_scores_are_the_same_to_the_bit_for_one_and_two_workers(workers, key):
    workspace = workspace_of(key)
    plans = make_all_plans(workspace, key, METHODS, Workers(1))
    close_workspaces()
    workspace = workspace_of(key)
    assert make_all_plans(workspace, key, METHODS, workers) == plans
    (first, *_) = plans["hosvd:variance=0.8"].values()
    assert first.trials
    tensors = {name: workspace.experiment.start[name] + 0.01 for name in workspace.trained_by(first)}
    for plan in (first, None):
        whole = count_in(workspace, plan, tensors, np.arange(len(workspace.experiment.test))).outcome()
        assert evaluate_on_test_set(workspace, key, plan, record_of(tensors), SharedRecords(workers)) == whole
    assert len(workspace.experiment.test) > 256
    aged = [replace(plan, expected_error=1e-9) for plan in plans["hosvd:variance=0.8"].values()]
    again = replan_all(workspace, key, [*aged, first], tensors, workers)
    assert again == replan_all(workspace, key, [*aged, first], tensors, Workers(1))
    assert again[-1] is None


def test_seeds_are_pretrained_by_the_workers_and_each_is_found_by_who_asks_for_it(workers, cache, tmp_path, monkeypatch):
    settings = {
        "max_examples": 160, "max_test_examples": 40, "width": 0.1, "resolution": 16, "clients": 2, "pretrain_epochs": 1,
    }  # fmt: skip
    configs = [make_config({**settings, "seed": seed}) for seed in (0, 1)]
    for config, _ in zip(configs, fit_ahead(configs, workers), strict=True):
        monkeypatch.setenv("FEDACT_CACHE", cache)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pretraining, "_train", lambda *_: pytest.fail("it is not there"))
            found = prepare(config).experiment.start_digest
        monkeypatch.setenv("FEDACT_CACHE", str(tmp_path / "another"))
        assert prepare(config).experiment.start_digest == found
    assert list(fit_ahead(configs, Workers(1))) == [None] * 2
