import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fedact
from fedact.compression import METHODS, published
from fedact.config.errors import as_flag
from fedact.config.privacy import PRIVACY
from fedact.config.schema import SETTINGS
from fedact.config.strategies import STRATEGIES
from fedact.federation import server
from fedact.simulate import main, parser
from fedact.storage.rows import CLIENT_FIELDS, ROUND_FIELDS
from fedact.training.averaging import RunningMean
from tests.support.runs import BOTH, TINY, rows, timeless


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> Path:
    """One finished run of two methods."""
    folder = tmp_path_factory.mktemp("run") / "both"
    assert main([*BOTH, "--out", str(folder)]) == 0
    return folder


def test_a_run_leaves_what_the_contract_says(both):
    assert sorted(path.name for path in both.iterdir()) == [
        "accuracy.png", "checkpoints", "config.toml", "memory.png", "partition.csv", "partition.png", "plans.json",
        "records.jsonl",
    ]  # fmt: skip
    header, *others = rows(both)
    assert header["kind"] == "run"
    assert {"schema", "config", "versions", "budgets", "command", "machine", "threads", "start_digest"} <= set(header)
    assert {"python", "torch", "torchvision", "numpy"} <= set(header["versions"])
    assert header["machine"]["cpu_capability"] == torch.backends.cpu.get_cpu_capability()
    assert header["threads"] == header["config"]["threads"] >= 1
    assert re.fullmatch("[0-9a-f]{32}", header["start_digest"])
    assert header["classes"] == list(map(str, range(len(header["classes"]))))
    fields = {"client": list(CLIENT_FIELDS), "round": list(ROUND_FIELDS)}
    assert all(list(row) == fields[row["kind"]] for row in others)
    assert len(list((both / "checkpoints").glob("*.safetensors"))) == 2


def test_each_method_has_every_round_from_0_and_every_client(both):
    for method in ("vanilla", "hosvd"):
        own = [row for row in rows(both)[1:] if row["method"] == method]
        assert [row["round"] for row in own if row["kind"] == "round"] == [0, 1, 2]
        assert [(r["round"], r["client"]) for r in own if r["kind"] == "client"] == [
            (r, c) for r in (1, 2) for c in range(4)
        ]


def test_methods_share_clients_split_and_order(both):
    run = fedact.load_run(both)
    shared = ["round", "client", "num_examples"]
    vanilla, hosvd = (run.clients[run.clients["method"] == name][shared].to_numpy() for name in ("vanilla", "hosvd"))
    assert (vanilla == hosvd).all()
    starts = run.rounds[run.rounds["round"] == 0]
    assert starts["accuracy"].nunique() == 1


def test_no_row_breaks_its_budget_and_the_plan_says_what_gave_way(both):
    run = fedact.load_run(both)
    assert (run.clients["peak_bytes"] <= 460_000).all()
    assert set(run.clients["status"]) == {"ok"}
    plans = json.loads((both / "plans.json").read_text())
    assert "micro-batch 8 to" in plans["vanilla"]["460000"]["reason"]
    assert run.clients["peak_bytes"].max() <= max(by["460000"]["peak_bytes"] for by in plans.values())


def test_the_table_sets_the_methods_side_by_side(both, capsys):
    assert main(["--resume", str(both)]) == 0
    shown = capsys.readouterr().out
    for text in ("vanilla", "hosvd", "accuracy before", "budget held", "micro-batch 8", "optimizer", "bytes sent"):
        assert text in shown


def test_the_same_command_gives_the_same_rows(both, tmp_path):
    assert main([*BOTH, "--out", str(tmp_path / "again")]) == 0
    assert timeless(tmp_path / "again") == timeless(both)


def test_the_written_config_repeats_the_run(both, tmp_path):
    assert main(["--config", str(both / "config.toml"), "--out", str(tmp_path / "again")]) == 0
    assert timeless(tmp_path / "again") == timeless(both)


def test_resuming_a_finished_run_changes_nothing(both):
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in both.rglob("*") if path.is_file()}
    assert main(["--resume", str(both)]) == 0
    assert before == {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in both.rglob("*") if path.is_file()}


@pytest.mark.parametrize("last", ["vanilla 1", "vanilla 2", "hosvd 0", "hosvd 1"])
def test_ctrl_c_leaves_a_readable_run_and_resuming_ends_as_if_nothing_had_been(both, tmp_path, monkeypatch, capsys, last):
    method, number = last.split()
    finish = server.PartialFedAvg.finish_round

    def break_off(self, server_round, arrays):
        result = finish(self, server_round, arrays)
        if (self.run.method, str(server_round)) == (method, number):
            raise KeyboardInterrupt
        return result

    folder = tmp_path / "run"
    monkeypatch.setattr(server.PartialFedAvg, "finish_round", break_off)
    assert main([*BOTH, "--out", str(folder)]) == 130
    assert f"python -m fedact.simulate --resume {folder}" in capsys.readouterr().err
    assert fedact.load_run(folder).rounds.iloc[-1][["method", "round"]].tolist() == [method, int(number)]
    monkeypatch.undo()
    with (folder / "records.jsonl").open("a") as records:
        records.write('{"kind": "client", "method": "hos')
    assert main(["--resume", str(folder)]) == 0
    assert timeless(folder) == timeless(both)
    final = f"checkpoints/{method}-round-0002.safetensors"
    assert (folder / final).read_bytes() == (both / final).read_bytes()


def test_a_step_over_the_budget_is_a_failed_row_and_exit_code_1(tmp_path, monkeypatch, capsys):
    def too_large(*arguments, **options):
        return dataclasses.replace(fedact.make_plan(*arguments, **options), micro_batch=8)

    monkeypatch.setattr("fedact.federation.planning.make_plan", too_large)
    assert main([*TINY, "--method", "vanilla", "--rounds", "1", "--out", str(tmp_path / "run")]) == 1
    run = fedact.load_run(tmp_path / "run")
    assert set(run.clients["status"]) == {"failed"}
    assert run.clients["reason"].str.contains("over the budget of 460,000").all()
    assert "failed" in capsys.readouterr().err


def test_a_client_that_diverges_is_a_failed_row_and_never_reaches_the_average(tmp_path):
    diverging = ["--lr", "1e6", "--clip-norm", "1e6", "--local-epochs", "20", "--layers", "4", "--rounds", "1"]
    assert main([*TINY, *diverging, "--out", str(tmp_path / "run")]) == 1
    run = fedact.load_run(tmp_path / "run")
    assert set(run.clients["status"]) == {"failed"}
    assert run.clients["reason"].str.contains("diverged").all()
    assert run.rounds["loss"].nunique() == 1


def test_mixed_budgets_skip_and_shrink_as_they_must(tmp_path):
    mix = ["--budget", "1KB:1,300KB:1,420KB:1,none:1"]
    assert main([*TINY, "--layers", "auto", *mix, "--method", "vanilla", "--out", str(tmp_path / "run")]) == 0
    run = fedact.load_run(tmp_path / "run")
    by_budget = run.clients.groupby(run.clients["budget_bytes"].fillna(0))
    assert by_budget["status"].first()[1000.0] == "skipped"
    assert by_budget["reason"].first()[1000.0].startswith("even the head alone")
    layers = by_budget["trained_layers"].first()
    assert layers[300000.0] < layers[420000.0] <= layers[0.0]
    measured = run.clients.dropna(subset=["peak_bytes", "budget_bytes"])
    assert (measured["peak_bytes"] <= measured["budget_bytes"]).all()


def test_each_tensor_is_the_mean_over_the_clients_that_trained_it():
    import torch

    mean = RunningMean()
    mean.add({"deep": torch.tensor([1.0]), "head": torch.tensor([1.0])}, weight=1)
    mean.add({"head": torch.tensor([4.0])}, weight=2)
    over = mean.over({"deep": torch.tensor([9.0]), "head": torch.tensor([9.0]), "nobody": torch.tensor([9.0])})
    assert {name: tensor.tolist() for name, tensor in over.items()} == {"deep": [1.0], "head": [3.0], "nobody": [9.0]}


def test_only_trained_tensors_are_sent(both):
    run = fedact.load_run(both)
    weights = json.loads((both / "plans.json").read_text())["hosvd"]["460000"]
    assert run.clients["upload_bytes"].max() < 1.05 * weights["gradient_bytes"] < weights["weight_bytes"]


def test_seeds_have_a_folder_each_and_read_back_as_one_run(tmp_path):
    command = [*TINY, "--rounds", "1", "--seeds", "2", "--seed", "3", "--out", str(tmp_path / "run")]
    assert main(command) == 0
    assert sorted(p.name for p in (tmp_path / "run").glob("seed-*")) == ["seed-3", "seed-4"]
    assert sorted(fedact.load_run(tmp_path / "run").rounds["seed"].unique()) == [3, 4]
    assert main(["--resume", str(tmp_path / "run")]) == 0


def test_a_sample_of_clients_is_drawn_from_the_seed(tmp_path):
    assert main([*TINY, "--sample-fraction", "0.5", "--out", str(tmp_path / "run")]) == 0
    clients = fedact.load_run(tmp_path / "run").clients
    assert clients.groupby("round").size().tolist() == [2, 2]


def test_a_dry_run_shows_plans_and_partition_and_writes_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([*BOTH, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "Who holds what" in shown
    assert "features.18.0" in shown
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("more", [[], pytest.param(["--train-norm"], marks=pytest.mark.slow)], ids=["", "train-norm"])
def test_every_method_trains_within_its_budget(tmp_path, more):
    named = [argument for text in published() for argument in ("--method", text)]
    small = ["--rounds", "1", "--layers", "3", "--budget", "500KB", "--clients", "2"]
    assert main([*TINY, *small, *named, *more, "--out", str(tmp_path / "run")]) == 0
    run = fedact.load_run(tmp_path / "run")
    assert set(run.clients["method"].str.split(":").str[0]) == set(METHODS)
    assert set(run.clients["status"]) == {"ok"}
    assert (run.clients["peak_bytes"] <= 500_000).all()
    states = run.clients.groupby("method")["state_bytes"].max()
    stateful = {"asi", "lance", "quantize", "transform", "division", "random_projection"}
    assert {method.partition(":")[0] for method, size in states.items() if size} == stateful


def test_the_list_shows_every_table(capsys):
    assert main(["--list"]) == 0
    shown = capsys.readouterr().out
    for name in ("mobilenet_v2", "digits", "CIFAR-100", "dirichlet", "alpha", *METHODS):
        assert name in shown
    for entry in METHODS.values():
        assert all(f"{field.name}=" in shown for field in dataclasses.fields(entry))
        assert entry.traits.source.split()[0] in shown
    for table in (STRATEGIES, PRIVACY):
        for name, rule in table.items():
            assert name in shown
            assert all(f"{field.name}=" in shown for field in dataclasses.fields(rule))
            assert rule.source.split()[0] in shown
    assert "corrupt=0" in shown


def test_help_names_every_flag_and_imports_neither_torch_nor_flwr():
    code = (
        "import sys; from fedact.simulate import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'flwr', 'torchvision', 'pandas', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for flag in ("--clients", "--budget", "--method", "--layers", "--resume", "--dry-run", "--list", "--seeds"):
        assert flag in done.stdout


GROUPS = ["most used", "fleet", "budget", "method", "model", "data", "training", "running"]


@pytest.mark.parametrize("columns", [80, 120])
def test_help_shows_the_flags_in_groups_and_what_matters_first(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = parser().format_help().splitlines()
    assert max(map(len, lines)) <= columns
    assert [line[:-1] for line in lines if line.endswith(":") and not line.startswith(" ")] == GROUPS
    flags = [line.split()[0] for line in lines if line.startswith("  -")]
    assert flags[:5] == ["--clients", "--rounds", "--budget", "--method", "--dataset"]
    others = ["--config", "--resume", "--own-code", "--dry-run", "--list", "-h,"]
    assert sorted(flags) == sorted([*map(as_flag, SETTINGS), *others])


def test_module_command_line_works_from_outside(tmp_path):
    environment = {**os.environ, "FEDACT_CACHE": str(tmp_path)}
    command = [sys.executable, "-m", "fedact.simulate", "--clients", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
