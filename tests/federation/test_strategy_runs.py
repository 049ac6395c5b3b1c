"""Whole runs: mixed fleets under every strategy and their resumption, faults, exceptions, privacy and deadlines."""

import json
from pathlib import Path

import pytest

import fedact
from fedact.config.strategies import STRATEGIES
from fedact.federation import client, server
from fedact.federation.planning import make_plans
from fedact.simulate import main
from fedact.storage.checkpoints import load
from tests.support.runs import FEW, rows, timeless
from tests.support.stopping import stopping_after

FLEET = [*FEW, "--method", "vanilla", "--budget", "420KB:2,480KB:1", "--replan", "never", "--rounds", "2"]
"""Three clients, of which one trains more layers than the others."""
MORE = [*FEW, "--method", "vanilla", "--budget", "480KB", "--rounds", "2", "--clients", "4", "--replan", "never"]
del MORE[MORE.index("--layers") : MORE.index("--layers") + 2], FLEET[FLEET.index("--layers") : FLEET.index("--layers") + 2]


@pytest.fixture(autouse=True)
def only_what_is_tested():
    """Runs of the same fleet have the same plans; and nothing is drawn."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedact.reports.run.figures.save_figures", lambda *_: {})
        patch.setattr("fedact.federation.plan_tasks.make_plans", once)
        yield


PLANS: dict[tuple, dict] = {}


def once(workspace, method):
    config = workspace.experiment.config
    key = (method, config.budget, config.clients, config.strategy, config.privacy)
    if key not in PLANS:
        PLANS[key] = make_plans(workspace, method)
    return dict(PLANS[key])


def run(folder: Path, *command: str) -> Path:
    assert main([*command, "--out", str(folder)]) == 0
    return folder


def checkpoint(folder: Path, number: int = 2) -> bytes:
    return (folder / f"checkpoints/vanilla-round-{number:04d}.safetensors").read_bytes()


def clients(folder: Path) -> list[dict]:
    return [row for row in rows(folder) if row["kind"] == "client"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_resumed_run_equals_an_uninterrupted_one_to_the_bit(strategy, tmp_path, monkeypatch):
    whole = run(tmp_path / "whole", *FLEET, "--strategy", strategy)
    monkeypatch.setattr(server.PartialFedAvg, "finish_round", stopping_after(1))
    assert main([*FLEET, "--strategy", strategy, "--out", str(tmp_path / "cut")]) == 130
    monkeypatch.undo()
    assert main(["--resume", str(tmp_path / "cut")]) == 0
    assert timeless(tmp_path / "cut") == timeless(whole)
    files = sorted(file.name for file in (whole / "checkpoints").iterdir())
    assert files == sorted(file.name for file in (tmp_path / "cut" / "checkpoints").iterdir())
    assert len(files) == (2 if STRATEGIES[strategy].moments else 1)
    for name in files:
        assert (tmp_path / "cut" / "checkpoints" / name).read_bytes() == (whole / "checkpoints" / name).read_bytes()
    depths = {row["trained_layers"] for row in clients(whole)}
    assert len(depths) == 2


def test_a_run_without_its_servers_state_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(server.PartialFedAvg, "finish_round", stopping_after(0))
    assert main([*FLEET, "--strategy", "fedadam", "--out", str(tmp_path / "run")]) == 130
    monkeypatch.undo()
    (tmp_path / "run/checkpoints/vanilla-server-0000.safetensors").unlink()
    capsys.readouterr()
    assert main(["--resume", str(tmp_path / "run")]) == 2
    assert "vanilla-server-0000.safetensors" in capsys.readouterr().err


def test_strategies_change_the_model_and_fedprox_takes_a_copy_and_no_activation_memory(tmp_path):
    plain = run(tmp_path / "plain", *MORE, "--rounds", "1")
    pulled = run(tmp_path / "pulled", *MORE, "--rounds", "1", "--strategy", "fedprox:proximal_mu=5")
    assert checkpoint(plain, 1) != checkpoint(pulled, 1)
    for one, other in zip(clients(plain), clients(pulled), strict=True):
        assert all(one[name] == other[name] for name in ("saved_bytes", "state_bytes", "peak_bytes", "upload_bytes"))
        plan = fedact.load_run(pulled).plans[other["method"]][other["plan"]]
        assert (one["copy_bytes"], other["copy_bytes"]) == (0, plan["gradient_bytes"])
        assert plan["copy_bytes"] == plan["gradient_bytes"]
        # The trained weights, their gradients, and momentum's velocity; copies stand beside them.
        others = 3 * plan["gradient_bytes"] + plan["batch_bytes"]
        assert [row["device_bytes"] - row["peak_bytes"] for row in (one, other)] == [others, others + plan["copy_bytes"]]
        assert one["floor_bytes"] == other["floor_bytes"] == plan["floor_bytes"] > 0


# Faults --------------------------------------------------------------------------------------------------------------------


def test_corrupt_updates_leave_the_model_as_if_their_clients_had_vanished(tmp_path, capsys):
    corrupt = run(tmp_path / "corrupt", *MORE, "--faults", "corrupt=0.4")
    assert capsys.readouterr().err.count("failed") == 0
    dropped = run(tmp_path / "dropped", *MORE, "--faults", "drop=0.4")
    assert checkpoint(corrupt) == checkpoint(dropped)
    kinds = [(row["status"], row["fault"]) for row in clients(corrupt)]
    assert set(kinds) == {("ok", None), ("failed", "corrupt")}
    assert [row["fault"] is None for row in clients(dropped)] == [row["fault"] is None for row in clients(corrupt)]
    assert all("tensor '" in row["reason"] for row in clients(corrupt) if row["fault"])
    assert all(row["traceback"] is None for row in clients(corrupt))


@pytest.mark.parametrize("faults", ["drop=1", "corrupt=1", "slow=1,lag=1000000000"])
def test_a_run_in_which_every_client_fails_goes_on_and_changes_nothing(tmp_path, faults):
    folder = run(tmp_path / "run", *MORE, "--faults", faults, "--deadline", "0.001", "--strategy", "fedavgm")
    start = fedact.load_run(folder).rounds
    assert start["accuracy"].nunique() == start["loss"].nunique() == 1
    assert len(start) == 3
    assert list(start["trained_by"]) == [{}] * 3
    assert {row["status"] for row in clients(folder)} == {"failed"}
    assert all(row["reason"] and row["fault"] == faults.partition("=")[0] for row in clients(folder))


def test_lag_is_told_and_counted_and_over_the_deadline_it_loses_the_client(tmp_path):
    faults = ("--faults", "slow=0.6,lag=100")
    waited = run(tmp_path / "waited", *MORE, *faults)
    lost = run(tmp_path / "lost", *MORE, *faults, "--deadline", "80")
    slow = [row for row in clients(waited) if row["fault"] == "slow"]
    assert 0 < len(slow) < len(clients(waited))
    for row, other in zip(clients(waited), clients(lost), strict=True):
        assert (row["fault"], row["status"]) == (other["fault"], "ok")
        if row["fault"] is None:
            assert row["seconds"] < 60
            continue
        lag = float(row["reason"].rpartition("; ")[2].split(" s of simulated lag")[0])
        assert row["seconds"] > lag - 0.06
        assert (other["status"] == "failed") == (lag > 80)
        assert ("over the deadline of 80 s" in other["reason"]) == (lag > 80)
    assert {row["status"] for row in clients(lost)} == {"ok", "failed"}
    assert timeless(run(tmp_path / "again", *MORE, *faults, "--deadline", "80")) == timeless(lost)


def test_methods_share_their_faults(tmp_path):
    both = run(tmp_path / "both", *MORE, "--method", "exact", "--faults", "drop=0.3,slow=0.3,corrupt=0.3")
    faults = {
        m: [(r["round"], r["client"], r["fault"]) for r in clients(both) if r["method"] == m] for m in ("vanilla", "exact")
    }
    assert faults["vanilla"] == faults["exact"]


# Failures that nobody asked for --------------------------------------------------------------------------------------------


def test_a_clients_exception_is_a_row_with_its_traceback_and_exit_code_1(tmp_path, monkeypatch, capsys):
    train = client._train

    def breaks(workspace, config, plan, number, round, *others):
        if (number, round) == (1, 2):
            raise ZeroDivisionError("the battery is empty")
        return train(workspace, config, plan, number, round, *others)

    monkeypatch.setattr(client, "_train", breaks)
    # A client that breaks before its update is damaged has failed of itself.
    command = [*MORE, "--faults", "corrupt=0.5", "--out", str(tmp_path / "run")]
    assert main(command) == 1
    (failed,) = [row for row in clients(tmp_path / "run") if row["traceback"]]
    assert (failed["round"], failed["client"], failed["status"], failed["fault"]) == (2, 1, "failed", None)
    assert failed["reason"] == "ZeroDivisionError: the battery is empty"
    assert "in breaks" in failed["traceback"]
    shown = capsys.readouterr().err
    assert "round 2, client 1 failed: ZeroDivisionError: the battery is empty" in shown
    assert shown.count("failed:") == 1


def test_replies_in_any_order_make_the_same_rows_and_weights(tmp_path, monkeypatch):
    straight = run(tmp_path / "straight", *MORE)
    send = fedact.federation.local_grid.LocalGrid.send_and_receive

    def backwards(self, messages, *, timeout=None):
        return list(send(self, messages, timeout=timeout))[::-1]

    monkeypatch.setattr("fedact.federation.local_grid.LocalGrid.send_and_receive", backwards)
    reversed_ = run(tmp_path / "reversed", *MORE)
    assert timeless(reversed_) == timeless(straight)
    assert checkpoint(reversed_) == checkpoint(straight)


def test_a_real_clients_silence_until_the_deadline_is_a_failed_row(tmp_path, monkeypatch):
    send, asked = fedact.federation.local_grid.LocalGrid.send_and_receive, []

    def without_the_first(self, messages, *, timeout=None):
        asked.append(timeout)
        return list(send(self, messages))[1:]

    monkeypatch.setattr("fedact.federation.local_grid.LocalGrid.send_and_receive", without_the_first)
    assert main([*MORE, "--rounds", "1", "--deadline", "7.5", "--out", str(tmp_path / "run")]) == 1
    assert set(asked) == {7.5}
    first, *others = clients(tmp_path / "run")
    assert (first["status"], first["reason"], first["fault"]) == ("failed", "no reply came before the deadline", None)
    assert {row["status"] for row in others} == {"ok"}


# Privacy -------------------------------------------------------------------------------------------------------------------


def test_private_updates_are_noisy_the_same_again_and_only_of_what_was_trained(tmp_path):
    command = [*FLEET, "--rounds", "1", "--privacy", "local_dp:clipping_norm=0.5,epsilon=0.9,delta=0.01"]
    private, again, plain = run(tmp_path / "a", *command), run(tmp_path / "b", *command), run(tmp_path / "c", *command[:-2])
    assert checkpoint(private, 1) == checkpoint(again, 1) != checkpoint(plain, 1)
    tensors = [load(folder / "checkpoints/vanilla-round-0001.safetensors") for folder in (private, plain)]
    assert tensors[0].keys() == tensors[1].keys()
    assert {row["status"] for row in clients(private)} == {"ok"}
    written = json.loads((private / "records.jsonl").read_text().splitlines()[0])["config"]
    assert written["privacy"] == "local_dp:clipping_norm=0.5,delta=0.01"
