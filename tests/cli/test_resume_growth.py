"""A run that is started again: what is finished stays, what is missing or was added runs."""

import pytest

import fedact
from fedact.simulate import main
from tests.support.refusal import refused
from tests.support.runs import SMALL, contents, rows, timeless
from tests.support.stopping import stopping_after

ONE = [*SMALL, "--layers", "1", "--rounds", "2"]


def start(out, *more: str) -> int:
    return main([*ONE, *more, "--out", str(out)])


def test_a_finished_run_that_is_started_again_is_left_as_it_is(tmp_path, capsys):
    assert start(tmp_path / "run", "--method", "exact") == 0
    before = contents(tmp_path / "run")
    capsys.readouterr()
    assert start(tmp_path / "run", "--method", "exact") == 0
    assert contents(tmp_path / "run") == before
    assert "accuracy after" in capsys.readouterr().out


def test_a_run_that_was_stopped_goes_on_when_it_is_started_again(tmp_path, monkeypatch):
    from fedact.federation import server

    assert start(tmp_path / "whole", "--method", "exact") == 0
    monkeypatch.setattr(server.PartialFedAvg, "finish_round", stopping_after(1))
    assert start(tmp_path / "run", "--method", "exact") == 130
    monkeypatch.undo()
    assert start(tmp_path / "run", "--method", "exact") == 0
    assert timeless(tmp_path / "run") == timeless(tmp_path / "whole")


def test_a_run_from_when_saved_was_the_default_goes_on_with_its_own_scope(tmp_path, monkeypatch, capsys):
    from fedact.federation import server

    command = ("--method", "exact", "--budget", "20KB")
    monkeypatch.setattr(server.PartialFedAvg, "finish_round", stopping_after(1))
    assert start(tmp_path / "run", *command, "--scope", "saved") == 130
    monkeypatch.undo()
    before = contents(tmp_path / "run")
    capsys.readouterr()
    assert start(tmp_path / "run", *command) == 2
    assert "holds a run with scope saved, not peak: name a new folder, or go on with --resume" in capsys.readouterr().err
    assert contents(tmp_path / "run") == before
    assert main(["--resume", str(tmp_path / "run")]) == 0
    run = fedact.load_run(tmp_path / "run")
    assert (run.config["scope"], run.plans["exact"]["20000"]["scope"]) == ("saved", "saved")
    assert (run.clients["saved_bytes"] <= 20_000).all()
    assert (run.clients["peak_bytes"] > 20_000).all()


def test_an_added_method_runs_and_the_finished_ones_do_not(tmp_path):
    both = ("--method", "exact", "--method", "quantize")
    assert start(tmp_path / "both", *both) == 0
    assert start(tmp_path / "run", "--method", "exact") == 0
    first = (tmp_path / "run/records.jsonl").read_bytes()
    assert start(tmp_path / "run", "--method", "quantize") == 0
    assert (tmp_path / "run/records.jsonl").read_bytes().startswith(first)
    assert [row for row in timeless(tmp_path / "run") if row["kind"] != "run"] == [
        row for row in timeless(tmp_path / "both") if row["kind"] != "run"
    ]
    assert (tmp_path / "run/plans.json").read_bytes() == (tmp_path / "both/plans.json").read_bytes()
    assert (tmp_path / "run/config.toml").read_bytes() == (tmp_path / "both/config.toml").read_bytes()
    before = contents(tmp_path / "run")
    assert main(["--resume", str(tmp_path / "run")]) == 0
    assert start(tmp_path / "run", *both) == 0
    assert contents(tmp_path / "run") == before


def test_an_added_method_that_was_stopped_goes_on(tmp_path, monkeypatch):
    from fedact.federation import server

    assert start(tmp_path / "run", "--method", "exact") == 0
    monkeypatch.setattr(server.PartialFedAvg, "finish_round", stopping_after(1))
    assert start(tmp_path / "run", "--method", "quantize") == 130
    monkeypatch.undo()
    assert main(["--resume", str(tmp_path / "run")]) == 0
    done = fedact.load_run(tmp_path / "run").rounds.groupby("method", sort=False)["round"].max()
    assert done.to_dict() == {"exact": 2, "quantize": 2}


def test_seeds_may_be_added_to_several(tmp_path):
    assert start(tmp_path / "run", "--method", "exact", "--seeds", "2") == 0
    before = {name: content for name, content in contents(tmp_path / "run").items() if "seed-" in str(name)}
    assert start(tmp_path / "run", "--method", "exact", "--seeds", "3") == 0
    after = contents(tmp_path / "run")
    assert {name: after[name] for name in before} == before
    assert set(fedact.load_run(tmp_path / "run").rounds["seed"]) == {0, 1, 2}


def test_seeds_that_are_not_named_again_go_on_too(tmp_path, monkeypatch):
    from fedact.federation import server

    monkeypatch.setattr(server.PartialFedAvg, "finish_round", stopping_after(1))
    assert start(tmp_path / "run", "--method", "exact", "--seeds", "2") == 130
    monkeypatch.undo()
    assert start(tmp_path / "run", "--method", "exact") == 0
    assert set(fedact.load_run(tmp_path / "run").rounds["seed"]) == {0, 1}


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--lr", "0.5"], "holds a run with lr 0.1, not 0.5"),
        (["--rounds", "3"], "holds a run with rounds 2, not 3"),
        (["--budget", "70KB"], "holds a run with budget"),
        (["--scope", "saved"], "holds a run with scope peak, not saved"),
        (["--seeds", "2"], "a run of one seed"),
    ],
    ids=str,
)
def test_another_run_in_the_folder_is_left_alone(tmp_path, capsys, more, words):
    assert start(tmp_path / "run", "--method", "exact") == 0
    before = contents(tmp_path / "run")
    capsys.readouterr()
    assert start(tmp_path / "run", "--method", "exact", *more) == 2
    assert words in capsys.readouterr().err
    assert contents(tmp_path / "run") == before


def test_a_strange_config_in_the_folder_is_no_run(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.toml").write_text("editor = 'vim'\n")
    assert "editor" in refused(capsys, [], tmp_path / "run")
    assert len(list((tmp_path / "run").iterdir())) == 1


def test_rows_of_both_methods_follow_each_other(tmp_path):
    assert start(tmp_path / "run", "--method", "exact") == 0
    assert start(tmp_path / "run", "--method", "quantize") == 0
    kinds = [row.get("method") for row in rows(tmp_path / "run") if row["kind"] == "round"]
    assert kinds == ["exact"] * 3 + ["quantize"] * 3
