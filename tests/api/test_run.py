"""fedact.run: the command's rows, the caller's process as it was, and what goes on where it was stopped."""

import logging
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import fedact
from fedact.config.code_loading import load_code
from fedact.config.errors import ConfigError
from fedact.federation import server
from fedact.simulate import main
from fedact.training.workspace import close_workspaces
from tests.support.own_code import FLEET, flags, own_files
from tests.support.own_network import FEW, Net, accuracy, build, data
from tests.support.runs import rows, timeless
from tests.support.stopping import stopping_after


@pytest.fixture(scope="module")
def command(tmp_path_factory) -> Path:
    """The command's run of the network and the arrays of the tests here."""
    folder = tmp_path_factory.mktemp("command")
    arrays = {f"{key}_{part}": value for part in ("train", "test") for key, value in zip("xy", data()[part], strict=True)}
    np.savez(folder / "mine.npz", **arrays)
    where = ["--model", "tests.support.own_network:build", "--dataset", "npz", "--data-dir", str(folder / "mine.npz")]
    assert main([*where, *flags(FLEET), "--out", str(folder / "run")]) == 0
    return folder / "run"


@pytest.fixture(autouse=True)
def closed():
    close_workspaces()
    yield
    close_workspaces()


NETWORKS = {
    "a function of a module": build,
    "its name": "tests.support.own_network:build",
    "a class": Net,
    "a lambda": lambda classes: Net(classes),
}


@pytest.mark.parametrize("model", NETWORKS.values(), ids=NETWORKS)
def test_the_rows_are_those_of_the_command_with_the_same_settings(model, command, tmp_path):
    run = fedact.run(model, out=tmp_path / "run", **FEW)
    assert timeless(tmp_path / "run") == timeless(command)
    assert (tmp_path / "run" / "plans.json").read_bytes() == (command / "plans.json").read_bytes()
    frame = fedact.load_run(command)
    for ours, theirs in ((run.rounds, frame.rounds), (run.clients, frame.clients)):
        assert ours.drop(columns="seconds").equals(theirs.drop(columns="seconds"))
    assert isinstance(run, type(frame))


def test_settings_stand_in_the_runs_config_as_on_the_command_line(command, tmp_path):
    run = fedact.run(build, out=tmp_path / "run", **FEW)
    ours, theirs = run.config, fedact.load_run(command).config
    assert {name for name in ours if ours[name] != theirs[name]} == {"data_dir", "workers"}
    assert rows(tmp_path / "run")[0]["command"] == "fedact.run"
    assert Path(ours["data_dir"]).name.startswith("arrays-")


def process():
    loggers = [logging.getLogger(name) for name in (None, "fedact", "flwr")]
    logs = [(logger.level, logger.handlers[:]) for logger in loggers]
    return torch.get_num_threads(), logs, [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


def test_the_callers_process_is_as_before(tmp_path, capsys):
    before, random = process(), torch.get_rng_state()
    fedact.run(build, out=tmp_path / "run", **{**FEW, "quiet": False, "threads": 2, "method": "exact"})
    assert process() == before
    assert torch.equal(torch.get_rng_state(), random)
    shown = capsys.readouterr()
    assert "round 2/2" in shown.out
    assert "accuracy after" in shown.out
    assert "\x1b" not in shown.out + shown.err


def test_a_quiet_run_prints_nothing(tmp_path, capfd):
    fedact.run(build, out=tmp_path / "run", **{**FEW, "method": "exact"})
    assert capfd.readouterr() == ("", "")


def test_a_module_is_copied_and_starts_from_its_own_weights(tmp_path):
    torch.manual_seed(5)
    net = Net(4).train()
    net.body.weight.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    settings = {name: value for name, value in FEW.items() if name != "weights"}
    run = fedact.run(net, out=tmp_path / "run", **settings)
    assert run.config["weights"] == "none"
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert net.training
    assert not net.body.weight.requires_grad
    assert run.rounds.loc[0, "accuracy"] == pytest.approx(accuracy(net.eval(), run.model().preprocessing))


def test_a_run_that_was_stopped_goes_on_when_it_is_called_again(command, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(server.PartialFedAvg, "finish_round", stopping_after(1))
        with pytest.raises(KeyboardInterrupt):
            fedact.run(build, out=tmp_path / "run", **{**FEW, "quiet": False})
    assert f"call fedact.run with out='{tmp_path / 'run'}' again" in capsys.readouterr().err
    assert len(rows(tmp_path / "run")) < len(rows(command))
    fedact.run(build, out=tmp_path / "run", **FEW)
    assert timeless(tmp_path / "run") == timeless(command)


def test_a_finished_run_is_returned_as_it_is_and_methods_are_added(tmp_path, monkeypatch):
    first = fedact.run(build, out=tmp_path / "run", **FEW)
    before = (tmp_path / "run" / "records.jsonl").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("fedact.cli.simulate.Simulation", lambda *_: pytest.fail("it was run again"))
        again = fedact.run(build, out=tmp_path / "run", **FEW)
    assert (tmp_path / "run" / "records.jsonl").read_bytes() == before
    assert again.rounds.equals(first.rounds)
    more = fedact.run(build, out=tmp_path / "run", **{**FEW, "method": ["exact", "quantize"]})
    assert set(more.rounds["method"]) == {"exact", "hosvd", "quantize"}
    with pytest.raises(ConfigError, match=r"holds a run with momentum 0\.9, not 0\.5"):
        fedact.run(build, out=tmp_path / "run", momentum=0.5, **FEW)
    with pytest.raises(ConfigError, match="holds a run with model"):
        fedact.run(lambda classes: Net(classes, 7), out=tmp_path / "run", **FEW)


class Cut(Net):
    def forward(self, x):
        return super().forward(x).detach()


class OneByOne(Net):
    def forward(self, x):
        if len(x) > 1:
            raise ValueError("one at a time")
        return super().forward(x)


BAD = [
    ({"clinets": 3}, "fedact.run has no keyword 'clinets'; did you mean 'clients'?"),
    ({"clients": 0}, "--clients is 0"),
    ({"budget": "much"}, "much"),
    ({"method": "hosv"}, "did you mean 'hosvd'"),
    ({"strategy": 3.5j}, "strategy is 3.5j: it is a text"),
    ({"test": None}, "test"),
    ({"train": None}, "train"),
    ({"dataset": "digits"}, "dataset names data, and train and test are data"),
    ({"model": 3}, "model is a int: it is a name, a torch.nn.Module, or a function"),
    ({"model": "nowhere"}, "unknown model 'nowhere'"),
    ({"model": "nowhere.py:build"}, "nowhere.py:build: there is no file"),
    ({"model": Net(3)}, "gives (1, 3), not a score for each class: (1, 4)"),
    ({"model": lambda classes: 1 / 0}, "fails for 4 classes: ZeroDivisionError: division by zero"),
    ({"model": lambda: Net(4)}, "is called with the number of classes"),
    ({"train": (np.zeros((8, 12, 12, 3), np.uint8), np.zeros(7, int))}, "y_train of"),
    ({"train": (np.full((8, 3, 20), np.nan, np.float32), np.arange(8) % 4)}, "x_train of"),
    ({"model": torch.jit.script(Net(4))}, "returns what torch.jit or torch.compile made of a network"),
    ({"model": lambda classes: Cut(classes)}, "build gives scores without a gradient"),
    ({"model": lambda classes: OneByOne(classes)}, "build takes one example, but no batch of 2: one at a time"),
    ({"train": [np.zeros((2, 12, 12, 3), np.uint8), np.arange(2)]}, "items of train must be (x, y)"),
    ({"train": (torch.zeros(8, 12, 12, 3).to_sparse(), np.arange(8) % 4)}, "x of train is no array"),
    ({"train": (np.ma.masked_equal(np.arange(48.0).reshape(8, 6), 3), np.arange(8) % 4)}, "array with masked values"),
    ({"train": [1, 2]}, "items of train must be (x, y)"),
    ({"train": 3}, "train must be (x, y)"),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "said"), BAD, ids=[said for _, said in BAD])
def test_bad_input_is_one_line_and_nothing_is_written(settings, said, tmp_path, monkeypatch):
    monkeypatch.setenv("FEDACT_CACHE", str(tmp_path / "cache"))
    wrong_data = {"train", "test"} & set(settings)
    with pytest.raises(ConfigError) as error:
        fedact.run(**{"model": build, **FEW, **settings}, out=tmp_path / "run")
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()
    assert not (wrong_data and (tmp_path / "cache").exists())


def test_a_file_that_calls_run_as_it_is_imported_is_told_so(tmp_path):
    _, _ = own_files(tmp_path)
    (tmp_path / "script.py").write_text(f"import fedact\nfedact.run('mobilenet_v2', out={str(tmp_path / 'run')!r})\n")
    with pytest.raises(ConfigError, match=r"script\.py calls fedact\.run as it is imported: put that under if __name__"):
        load_code(f"{tmp_path}/script.py:build")
    assert not (tmp_path / "run").exists()


def test_what_cannot_be_sent_runs_in_one_process_or_says_what_to_do(tmp_path, monkeypatch, caplog):
    lock = threading.Lock()

    def locked(classes: int) -> nn.Module:
        with lock:
            return Net(classes)

    with pytest.raises(ConfigError, match=r"locked cannot be sent to other processes .*: run it in one with workers=1"):
        fedact.run(locked, out=tmp_path / "run", workers=2, **FEW)
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr("fedact.api.run.worker_count", lambda config: 2)
    run = fedact.run(locked, out=tmp_path / "run", **{**FEW, "method": "exact"})
    assert run.config["workers"] == 1
    assert "one process: locked cannot be sent" in caplog.text
