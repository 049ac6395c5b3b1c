"""Biases and low-rank updates through a federation: what is sent, averaged, evaluated, kept and gone on with."""

from importlib.util import find_spec

import numpy as np
import pytest
import torch
from torch import Tensor

import fedact
from fedact.config.loading import make_config
from fedact.federation import server
from fedact.nn.adaptation import is_factor, merged
from fedact.simulate import main
from fedact.training.batches import test_batches as batches_of
from fedact.training.evaluation import evaluate
from fedact.training.trained_model import trained_model
from fedact.training.workspace import Workspace, prepare
from tests.support.runs import SMALL, rows, timeless

RUN = [*SMALL, "--rounds", "2", "--layers", "3", "--budget", "none", "--method", "exact"]
LORA, FROZEN_A = "lora:rank=2,alpha=8", "lora:rank=2,freeze_a=true"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return the folder of a run of low-rank updates."""
    folder = tmp_path_factory.mktemp("update") / "run"
    assert main([*RUN, "--update", LORA, "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def workspace() -> Workspace:
    settings = dict(zip([flag.removeprefix("--").replace("-", "_") for flag in SMALL[::2]], SMALL[1::2], strict=True))
    return prepare(make_config({**settings, "update": LORA, "budget": "none"}))


def trained_alike(workspace: Workspace, layers: int) -> tuple[fedact.Plan, dict[str, Tensor]]:
    """Return a plan for so many layers, and tensors that it might have trained."""
    x, y = torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])
    plan = fedact.make_plan(workspace.model_with({}), None, (x, y), "exact", layers=layers, update=LORA)
    generator = torch.Generator().manual_seed(layers)
    start = workspace.start_of(workspace.trained_by(plan))
    return plan, {name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator) for name, tensor in start.items()}


def test_rows_say_the_update_and_what_is_sent_is_what_is_trained(run, tmp_path):
    assert {row["update"] for row in rows(run) if row["kind"] == "client"} == {LORA}
    sent = {LORA: fedact.load_run(run).clients["upload_bytes"].max()}
    for update in ("layers", "bias", FROZEN_A):
        folder = tmp_path / update.partition(":")[0] / str(len(update))
        assert main([*RUN, "--rounds", "1", "--update", update, "--out", str(folder)]) == 0
        sent[update] = fedact.load_run(folder).clients["upload_bytes"].max()
    # The head is in all of them.
    assert sent[FROZEN_A] < sent[LORA] < sent["layers"]
    assert sent["bias"] < sent["layers"]


def test_the_trained_model_is_plain_and_the_one_that_was_evaluated(run):
    last = fedact.load_run(run).rounds.iloc[-1]
    workspace, model = trained_model(fedact.load_run(run))
    assert model.state_dict().keys() == workspace.experiment.start.keys()
    count = len(workspace.experiment.test)
    found = evaluate(model, batches_of(workspace, None, (), np.arange(count), "test"), count)
    assert found.score == pytest.approx(last["accuracy"], abs=1e-9)
    assert found.loss == pytest.approx(last["loss"], rel=1e-5)


@pytest.mark.slow
def test_a_run_that_was_broken_off_goes_on_to_the_bit(run, tmp_path, monkeypatch):
    finish = server.PartialFedAvg.finish_round

    def break_off(self, server_round, arrays):
        result = finish(self, server_round, arrays)
        if server_round == 1:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(server.PartialFedAvg, "finish_round", break_off)
    folder = tmp_path / "broken"
    assert main([*RUN, "--update", LORA, "--out", str(folder)]) == 130
    monkeypatch.undo()
    assert main(["--resume", str(folder)]) == 0
    assert timeless(folder) == timeless(run)
    checkpoint = next((run / "checkpoints").iterdir()).name
    assert (folder / "checkpoints" / checkpoint).read_bytes() == (run / "checkpoints" / checkpoint).read_bytes()


@pytest.mark.slow
def test_workers_give_the_same_rows(run, tmp_path):
    assert main([*RUN, "--update", LORA, "--workers", "2", "--out", str(tmp_path / "run")]) == 0
    assert timeless(tmp_path / "run") == timeless(run)


@pytest.mark.exhaustive
@pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed: pip install -e '.[ray]'")
def test_ray_gives_the_same_rows(run, tmp_path):
    assert main([*RUN, "--update", LORA, "--runtime", "ray", "--out", str(tmp_path / "run")]) == 0
    assert timeless(tmp_path / "run") == timeless(run)


@pytest.mark.slow
def test_what_a_deeper_plan_trains_moves_a_shallow_plans_prefix_whatever_is_cached(tmp_path):
    mixed = [*SMALL, "--clients", "3", "--rounds", "3", "--method", "exact", "--update", LORA]
    mixed += ["--scope", "saved", "--budget", "1400/6000/none"]
    for name, size in (("cached", []), ("not", ["--cache-size", "none"])):
        assert main([*mixed, *size, "--out", str(tmp_path / name)]) == 0
    found = timeless(tmp_path / "cached")
    assert len({row["trained_layers"] for row in found if row["kind"] == "client"}) > 1
    assert found == timeless(tmp_path / "not")


def test_a_shallow_plans_model_has_the_updates_of_deeper_ones_in_its_weights(workspace):
    (shallow, _), (deep, tensors) = trained_alike(workspace, 1), trained_alike(workspace, 5)
    assert any(map(is_factor, tensors))
    x = torch.rand(3, 3, 32, 32)
    expected = workspace.model_with(tensors)(x)
    for plan in (shallow, deep, deep, shallow):
        assert torch.allclose(workspace.model_under(plan, tensors).eval()(x), expected, atol=1e-5)
    _, others = trained_alike(workspace, 5)
    others = {name: tensor + 0.05 for name, tensor in others.items()}
    # Of the same plan, whose layers stay as they are.
    again = workspace.model_under(shallow, others).eval()(x)
    assert torch.allclose(again, workspace.model_with(others)(x), atol=1e-5)
    assert not torch.allclose(again, expected, atol=1e-3)


def test_with_a_frozen_first_factor_the_mean_of_updates_is_the_update_of_means(workspace):
    _, first = trained_alike(workspace, 3)
    second = {name: tensor + torch.randn(tensor.shape) for name, tensor in first.items()}
    start = workspace.experiment.start

    def weights(update: str, *clients: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the plain weights of the mean of some clients' factors, those of B alone where A is frozen."""
        mean = {name: torch.stack([each[name] for each in clients]).mean(0) for name in clients[0]}
        kept = {name: tensor for name, tensor in mean.items() if update == LORA or not name.endswith("lora_a")}
        return {name: tensor for name, tensor in merged(kept, start, update, 0).items() if name.endswith("weight")}

    for update, exact in ((FROZEN_A, True), (LORA, False)):
        both, one, other = weights(update, first, second), weights(update, first), weights(update, second)
        convolved = [name for name in both if both[name].dim() == 4]
        close = [torch.allclose(both[name], (one[name] + other[name]) / 2, atol=1e-5) for name in convolved]
        assert all(close) if exact else not any(close)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--update", "lorra"], "did you mean 'lora'"),
        (["--update", "lora:rank=-1"], "rank"),
        (["--update", "bias", "--train-norm"], "--train-norm is for --update layers"),
    ],
)
def test_a_wrong_update_ends_with_exit_code_2_and_writes_nothing(flags, says, tmp_path, capsys):
    assert main([*RUN, *flags, "--out", str(tmp_path / "run")]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
