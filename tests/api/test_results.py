"""The models of runs: what a method trained, and whose code may run for it."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import fedact
from fedact.api.results import Run
from fedact.config.errors import ConfigError
from fedact.simulate import main
from tests.support.own_code import FLEET, NETWORK, flags, own_files
from tests.support.own_network import FEW, Net, accuracy, build
from tests.support.runs import SMALL


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> Run:
    """A run of a network that is in no file."""
    return fedact.run(lambda classes: Net(classes), out=tmp_path_factory.mktemp("given") / "run", **FEW)


@pytest.fixture
def of_file(tmp_path) -> Path:
    """A run of a network and data in files, started by the command."""
    model, dataset = own_files(tmp_path)
    settings = {**FLEET, "method": "exact", "rounds": 1, "model": model, "dataset": dataset}
    assert main([*flags(settings), "--out", str(tmp_path / "run")]) == 0
    return tmp_path / "run"


@pytest.mark.parametrize("method", ["exact", "hosvd"])
def test_a_method_s_model_is_the_one_whose_accuracy_the_last_round_has(given, method):
    model = given.model(method)
    last = given.rounds[given.rounds["method"] == method].iloc[-1]
    assert accuracy(model, model.preprocessing) == pytest.approx(last["accuracy"])
    trained = load_file(next((given.path / "checkpoints").glob(f"{method}-round-0002.safetensors")))
    assert trained
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in trained.items())
    assert type(model) is Net
    assert not model.training
    assert all(type(each).__module__.startswith(("torch.", "tests.")) for each in model.modules())


def test_inputs_are_made_of_whatever_the_run_could_have_been_given(given):
    model, (x, _) = given.model(), FEW["test"]
    due = model.preprocessing(x)
    for same in (torch.from_numpy(x), x.astype(np.int64), x.transpose(0, 3, 1, 2), np.asfortranarray(x), x.tolist()):
        assert torch.equal(model.preprocessing(same), due)
    # Scaled to its resolution, as the run's own would have been.
    assert model.preprocessing(x.repeat(2, axis=1).repeat(2, axis=2)).shape == due.shape
    for other in (x[0], x / 255, x[..., 0], x.astype(np.int64) + 200, x.astype(np.uint16), x[:0], x.astype(complex), "x"):
        with pytest.raises(ConfigError, match=r"^x "):
            model.preprocessing(other)


def test_models_are_the_callers_own(given):
    first = given.model()
    with torch.no_grad():
        first.body.weight.zero_()
    assert given.model().body.weight.abs().sum() > 0
    with pytest.raises(ConfigError, match=r"finished no round of lance, but of exact, hosvd"):
        given.model("lance")


def test_a_run_read_back_runs_no_code_unless_that_is_said(of_file):
    run = fedact.load_run(of_file)
    with pytest.raises(ConfigError, match=r"runs code of its own, .*mynet\.py:build, .*mydata\.py:load: add own_code=True"):
        run.model()
    assert isinstance(run.model(own_code=True), nn.Sequential)
    (of_file.parent / "mynet.py").write_text(NETWORK.replace("nn.ReLU()", "nn.Tanh()"))
    with pytest.raises(ConfigError, match=r"mynet\.py:build has changed"):
        run.model(own_code=True)


def test_a_network_may_be_given_again(given):
    run = fedact.load_run(given.path)
    with pytest.raises(ConfigError, match="add own_code=True"):
        run.model()
    model = run.model("exact", network=build)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), given.model("exact").parameters(), strict=True))
    with pytest.raises(ConfigError, match="began from the initial weights"):
        run.model(network=lambda classes: Net(classes, 7))
    with pytest.raises(ConfigError, match="is a int"):
        run.model(network=3)


def test_the_model_of_a_built_in_network_needs_no_permission(tmp_path):
    assert main([*SMALL, "--layers", "1", "--rounds", "1", "--method", "exact", "--out", str(tmp_path / "run")]) == 0
    model = fedact.load_run(tmp_path / "run").model("exact")
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(ConfigError, match="cannot be read"):
        fedact.load_run(tmp_path / "run").model("exact")


def test_the_code_of_methods_need_not_run_for_a_model(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("from fedact.compression import METHODS\n\nclass Same(METHODS['exact']):\n    pass\n")
    run = fedact.run(build, out=tmp_path / "run", **{**FEW, "method": "exact"})
    code = {**run.headers[0]["config"]["code"], f"{tmp_path}/mine.py:Same": "0" * 64}
    run.headers[0]["config"]["code"] = code
    assert type(run.model()) is Net
