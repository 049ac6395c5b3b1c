"""Trials: pseudo-clients of the server's examples against plain PyTorch, and what a run makes of the choice."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fedact.config.errors import ConfigError
from fedact.config.loading import make_config
from fedact.config.plan import Plan
from fedact.config.seeds import Purpose, generator
from fedact.data import Loader
from fedact.federation.planning import choice_for, make_plans
from fedact.training import trial
from fedact.training.judgement import WORST_LOSS, clearly_better, tempered_losses
from fedact.training.local import epochs
from fedact.training.recipe import recipe
from fedact.training.trial import CLIENTS, FOLDS, MOST_BATCHES, ROUNDS, TrialFleet, folds
from fedact.training.workspace import Workspace, prepare
from tests.support.runs import FEW_SETTINGS, contents, rows

SETTINGS = {**FEW_SETTINGS, "max_examples": 120, "calibration": 40, "width": 0.1, "threads": 1, "lr": "auto"}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDACT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield prepare(make_config(SETTINGS))


@pytest.mark.parametrize(
    "partition", ["dirichlet:alpha=0.3", "iid", "shards:per_client=2", "pathological:num_classes_per_partition=2", "linear"]
)
def test_every_example_is_held_out_once_and_no_client_of_that_fold_holds_it(partition):
    labels = np.arange(50) % 5
    made = folds(make_config({"partition": partition}), labels, each=20)
    assert len(made) == FOLDS
    assert sorted(np.concatenate([fold.held_out for fold in made])) == list(range(50))
    for fold in made:
        assert len(fold.clients) == CLIENTS
        assert not set(fold.held_out) & set(np.concatenate(fold.clients))
        assert sum(map(len, fold.clients)) >= 20 * CLIENTS
        assert np.bincount(labels[fold.held_out]).tolist() == [5] * 5


def test_a_temperature_takes_the_loudness_out_of_a_loss():
    targets = torch.arange(30) % 4
    scores = 2 * F.one_hot(targets, 4) + 2 * torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    plain = tempered_losses(scores, targets)
    assert plain.mean() <= float(F.cross_entropy(scores, targets)) + 1e-6
    assert tempered_losses(4 * scores, targets).mean() == pytest.approx(plain.mean(), rel=1e-4)
    assert tempered_losses(scores * float("nan"), targets).tolist() == [WORST_LOSS] * 30


def by_hand(workspace, layers: int, lr: float) -> np.ndarray:
    """Return the held-out losses of plain training of the last layers, from images, with nothing of the trial's."""
    experiment, losses = workspace.experiment, np.empty(40)
    config = experiment.config.model_copy(update={"rounds": ROUNDS, "lr": lr})
    x, y = Loader(experiment.calibration, experiment.preprocessing)(np.arange(40))
    outputs = {}
    for number, fold in enumerate(TrialFleet(workspace).folds):
        model = workspace.model_with({})
        trained = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Conv2d)][-layers:]
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith("classifier") or name.rpartition(".")[0] in trained[:layers])
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        means = [parameter.detach().clone() for parameter in parameters]
        for round_number in range(1, ROUNDS + 1):
            settings, sums = recipe(config, round_number), [torch.zeros_like(mean, dtype=torch.float64) for mean in means]
            for client, own in enumerate(fold.clients):
                with torch.no_grad():
                    for parameter, mean in zip(parameters, means, strict=True):
                        parameter.copy_(mean)
                optimizer = torch.optim.SGD(parameters, settings.lr, settings.momentum, weight_decay=settings.weight_decay)
                random = generator(config.seed, Purpose.TRIAL, round_number, 1 + number * CLIENTS + client)
                for chosen in epochs(len(own), settings, random):
                    optimizer.zero_grad()
                    F.cross_entropy(model(x[own[chosen]]), y[own[chosen]]).backward()
                    torch.nn.utils.clip_grad_norm_(parameters, settings.clip_norm)
                    optimizer.step()
                sums = [total + len(own) * p.detach().double() for total, p in zip(sums, parameters, strict=True)]
            means = [(total / sum(map(len, fold.clients))).float() for total in sums]
        with torch.no_grad():
            for parameter, mean in zip(parameters, means, strict=True):
                parameter.copy_(mean)
            outputs[number] = model(x[fold.held_out])
    order = np.concatenate([fold.held_out for fold in TrialFleet(workspace).folds])
    losses[order] = tempered_losses(torch.cat([outputs[number] for number in outputs]), y[torch.from_numpy(order)])
    return losses


@pytest.mark.parametrize("layers", [1, 3])
def test_a_candidate_does_as_plain_federated_averaging_of_the_same_clients_does(workspace, layers):
    judged = TrialFleet(workspace).judge(layers, 0.03)
    np.testing.assert_allclose(judged.losses, by_hand(workspace, layers, 0.03), rtol=1e-3, atol=1e-4)


def test_a_trial_leaves_the_start_as_it_is_and_comes_out_the_same_on_any_number_of_threads(workspace):
    workspace.choice = None
    first = choice_for(workspace)
    assert all(
        torch.equal(tensor, workspace.experiment.start[name])
        for name, tensor in workspace.model_with({}).state_dict().items()
    )
    workspace.choice, before = None, torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert choice_for(workspace) == first
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert choice_for(workspace) is choice_for(workspace)


@pytest.mark.parametrize("rounds", [1, 6, 1000])
def test_a_client_of_a_trial_sees_as_many_examples_as_one_of_the_run_up_to_a_bound(workspace, monkeypatch, rounds):
    config = workspace.experiment.config.model_copy(update={"rounds": rounds})
    experiment, dealt = replace(workspace.experiment, config=config), list[int]()
    monkeypatch.setattr(trial, "folds", lambda config, labels, each, _: dealt.append(each) or folds(config, labels, each))
    TrialFleet(Workspace(experiment, workspace.model))
    usual = float(np.median(experiment.parts.sizes()[0]))
    assert ROUNDS * dealt[0] == pytest.approx(min(usual * rounds, ROUNDS * MOST_BATCHES * config.batch_size), abs=ROUNDS)


def test_steps_that_are_too_long_end_a_trial_early(workspace):
    fleet = TrialFleet(workspace)
    good = fleet.judge(2, 0.01)
    bad = fleet.judge(2, 1000.0, good)
    assert (bad.finished, bad.loss) == (False, WORST_LOSS)
    assert bad.first_loss > good.first_loss
    assert clearly_better(good, bad)
    whole = fleet.judge(2, 1000.0)
    assert whole.finished
    assert clearly_better(good, whole)


@pytest.mark.parametrize(
    ("settings", "trials"),
    [
        ({"weights": "pretrain", "pretrain_epochs": 1}, False),
        ({"calibration": 16}, False),
        ({"rounds": 0}, False),
        ({}, True),
    ],
)
def test_there_is_a_trial_where_the_servers_examples_tell_something(settings, trials):
    config = make_config({**SETTINGS, "layers": 0, "budget": "none", **settings})
    workspace = prepare(config)
    (plan,) = make_plans(workspace, "exact").values()
    assert bool(plan.trials) == trials
    assert {trial.layers for trial in plan.trials} <= {0}
    assert plan.lr == (min(plan.trials, key=lambda trial: trial.loss).lr if trials else config.usual_lr)
    assert Plan.from_json(plan.to_json()) == plan


def test_what_is_given_is_what_the_plan_says():
    (plan,) = make_plans(prepare(make_config({**SETTINGS, "layers": 1, "lr": 0.07})), "exact").values()
    assert (plan.layers, plan.lr, plan.trials) == (1, 0.07, ())


RUN = [
    "--dataset", "synthetic", "--weights", "none", "--max-examples", "120", "--max-test-examples", "20", "--width", "0.1",
    "--resolution", "32", "--clients", "2", "--rounds", "2", "--batch-size", "8", "--calibration", "40",
    "--local-epochs", "1", "--layers", "0", "--budget", "none", "--method", "exact", "--threads", "1",
]  # fmt: skip


def test_a_run_goes_on_with_the_rate_that_was_chosen(tmp_path, monkeypatch, capsys):
    from fedact.simulate import main

    assert main([*RUN, "--out", str(tmp_path / "run")]) == 0
    assert "learning rate" in capsys.readouterr().out
    whole = contents(tmp_path / "run")
    (plan,) = json.loads((tmp_path / "run" / "plans.json").read_text())["exact"].values()
    assert plan["trials"]
    assert plan["lr"] in {trial["lr"] for trial in plan["trials"]}
    # What is left is cut off; a resumed run must not try anything again.
    lines = (tmp_path / "run" / "records.jsonl").read_text().splitlines(keepends=True)
    assert [row["round"] for row in rows(tmp_path / "run") if row["kind"] == "round"] == [0, 1, 2]
    assert len(lines) > 4
    monkeypatch.setattr("fedact.federation.planning.TrialFleet", lambda *_: pytest.fail("tried again"))
    assert main(["--resume", str(tmp_path / "run")]) == 0
    assert contents(tmp_path / "run") == whole


@pytest.mark.parametrize(("change", "says"), [({"lr": None}, "has no learning rate"), ({"lr": 0.5}, None)])
def test_a_plan_without_a_rate_is_none_of_a_run_that_gives_none(change, says, tmp_path):
    from dataclasses import replace

    from fedact.federation.plan_check import check_plan

    workspace = prepare(make_config({**SETTINGS, "layers": 0, "calibration": 16}))
    plan = replace(next(iter(make_plans(workspace, "exact").values())), **change)
    if says is None:
        return check_plan(workspace, "exact", plan, "it")
    with pytest.raises(ConfigError, match=says):
        check_plan(workspace, "exact", plan, "it")
    return None


@pytest.mark.exhaustive
def test_on_photographs_depth_pays_at_a_step_that_is_not_too_long(development_data):
    weights = development_data / "weights" / "mobilenet_v2-imagenet.safetensors"
    settings = {"dataset": "npz", "data_dir": development_data / "cifar10.npz", "weights": str(weights), "resolution": 64}
    workspace = prepare(make_config({**settings, "max_examples": 2000, "max_test_examples": 100, "rounds": 5, "threads": 1}))
    choice = choice_for(workspace)
    # By hand, on 1,000 test images: the head alone 53 %, 8 layers 59 %, 16 64 % at 0.03, and 46 % or less at 0.1.
    assert choice.layers >= 8
    assert choice.lr(choice.layers) == 0.03
    assert not any(trial.finished for trial in choice.trials if trial.layers and trial.lr == 0.1)
