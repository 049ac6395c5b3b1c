"""What is on the disk is gone on with only if this run could have written it."""

import json
import re
import shutil
from pathlib import Path

import pytest
import tomli_w
import torch
from safetensors.torch import load_file, save_file

from fedact.config.loading import read_toml
from fedact.federation import planning, server
from fedact.simulate import main
from tests.support.refusal import refused
from tests.support.runs import CHECKPOINT, REPLANNED, SMALL, STATES, contents, rows
from tests.support.stopping import stopping_after

METHOD = "lance:variance=0.8"


@pytest.fixture(scope="module")
def half(tmp_path_factory) -> Path:
    """A run that stands after the second of its three rounds; its plan was made again before it."""
    folder = tmp_path_factory.mktemp("half") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "TOLERANCE", 0)
        patch.setattr(server.PartialFedAvg, "finish_round", stopping_after(2))
        assert main([*REPLANNED, "--out", str(folder)]) == 130
    return folder


@pytest.fixture
def run(half, tmp_path) -> Path:
    shutil.copytree(half, tmp_path / "run")
    return tmp_path / "run"


def refuses(run: Path, capsys, words: str) -> None:
    assert re.search(words, refused(capsys, ["--resume", str(run)], run))


CONFIGS = {
    "lr": ({"lr": 0.2}, "lr 0.2, but the run in .* began with 0.1"),
    "rounds": ({"rounds": 5}, "rounds 5, but .* began with 3"),
    "seeds": ({"seed": 1}, "seed 1, but .* began with 0"),
    "method": ({"method": ["exact"]}, "method .*exact.*, but .* began with .*lance"),
}


@pytest.mark.parametrize(("changes", "words"), CONFIGS.values(), ids=CONFIGS)
def test_other_settings_than_the_run_began_with(run, capsys, changes, words):
    config = read_toml(run / "config.toml")
    (run / "config.toml").write_text(tomli_w.dumps({**config, **changes}))
    refuses(run, capsys, words)


def test_a_run_goes_on_from_the_initial_weights_that_it_began_with_alone(run, capsys):
    lines = (run / "records.jsonl").read_text().splitlines(keepends=True)
    header = json.loads(lines[0])
    other = {**header, "start_digest": "0" * 32, "machine": {**header["machine"], "cpu_capability": "NONE"}}
    (run / "records.jsonl").write_text("".join([json.dumps(other) + "\n", *lines[1:]]))
    refuses(
        run, capsys, r"began from the initial weights 00000000, and here they are \w{8} \(cpu_capability was NONE, is \w+\)"
    )
    # A run from before its start was recorded.
    (run / "records.jsonl").write_text("".join([json.dumps({**header, "start_digest": None}) + "\n", *lines[1:]]))
    assert main(["--resume", str(run)]) == 0


def test_a_checkpoint_in_which_a_bit_has_changed(run, capsys):
    content = (run / CHECKPOINT).read_bytes()
    (run / CHECKPOINT).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    refuses(run, capsys, "is broken: its tensors are not those that were written")


PLANS = {
    "method": ({"method": "exact"}, "is for exact"),
    "scope": ({"scope": "saved"}, "saved bytes"),
    "batch": ({"batch_size": 16}, "batches of 16"),
    "no examples": ({"micro_batch": 0}, "micro-batch is from 1"),
    "more examples than a batch": ({"micro_batch": 9}, "micro-batch is from 1"),
    "over the budget": ({"peak_bytes": 500_001}, "500001 peak bytes of 500000"),
    "nothing measured": ({"peak_bytes": None}, "None peak bytes"),
    "other layers": ({"layers": 2}, "trains 2 layers"),
    "a shape": ({"kept": [{"shape": [1, 2, 3]}]}, "not of its micro-batch"),
    "no such layer": ({"kept": [{"name": "../../x"}]}, "keeps the inputs of"),
    "no such method": ({"kept": [{"method": "pickle"}]}, "unknown method 'pickle'"),
    "ranks of another layer": ({"kept": [{"method": "hosvd:ranks=1x1x1x1,variance=-"}]}, "no plan for this model"),
    "nothing kept": ({"kept": []}, "keeps the inputs of"),
    "NaN": ({"expected_error": float("nan")}, "finite"),
    "huge": ({"weight_bytes": 2**63}, "less than"),
    "true for a number": ({"layers": True}, "layers"),
}


@pytest.mark.parametrize(("changes", "words"), PLANS.values(), ids=PLANS)
def test_a_plan_that_this_run_could_not_have_made(run, capsys, changes, words):
    plans = json.loads((run / "plans.json").read_text())
    plan = plans[METHOD]["500000@2"]
    changes = dict(changes)
    if changes.get("kept"):
        changes["kept"] = [{**plan["kept"][0], **changes["kept"][0]}, *plan["kept"][1:]]
    plans[METHOD]["500000@2"] = {**plan, **changes}
    (run / "plans.json").write_text(json.dumps(plans))
    refuses(run, capsys, words)


def replaced(rows_: list[dict], place: int, **fields) -> list[dict]:
    return [{**row, **fields} if number == place else row for number, row in enumerate(rows_)]


RECORDS = {
    "another schema": (lambda rows_: replaced(rows_, 0, schema=3), "line 1, is no record"),
    "two headers": (lambda rows_: [rows_[0], *rows_], "line 2: a run has one header"),
    "no header": (lambda rows_: rows_[1:], "line 1: a run has one header"),
    "a round twice": (lambda rows_: [*rows_[:2], *rows_[1:]], "line 3: .* is due with round 1"),
    "a round less": (lambda rows_: [rows_[0], *rows_[2:]], "line 2: .* is due with round 0"),
    "a client less": (lambda rows_: [*rows_[:2], *rows_[3:]], "round 1 has 2 clients, but not a row for each"),
    "a client twice": (lambda rows_: replaced(rows_, 3, client=0), "not a row for each"),
    "another seed": (lambda rows_: replaced(rows_, 4, seed=1), "seed 0, not round 1 of seed 1"),
    "another method": (lambda rows_: [{**row, "method": "exact"} for row in rows_], "is of another run"),
    "a client too many": (lambda rows_: replaced(rows_, 3, client=2), "is of another run"),
    "a strange field": (lambda rows_: replaced(rows_, 1, colour="red"), "line 2, is no record"),
    "a text for a number": (lambda rows_: replaced(rows_, 1, accuracy="high"), "line 2, is no record"),
    "infinity": (lambda rows_: replaced(rows_, 1, loss=float("inf")), "line 2, is no record"),
    "more than 63 bits": (lambda rows_: replaced(rows_, 2, saved_bytes=2**63), "line 3, is no record"),
}


@pytest.mark.parametrize(("change", "words"), RECORDS.values(), ids=RECORDS)
def test_rows_that_this_run_would_not_have_written(run, capsys, change, words):
    changed = [{"kind": "run", **row} for row in change(rows(run))]
    (run / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in changed))
    refuses(run, capsys, words)


TENSORS = {
    "a name less": (lambda name, tensors: tensors.pop(name), "too many or too few"),
    "a name more": (lambda name, tensors: tensors.update(more=torch.zeros(1)), "too many or too few"),
    "a shape": (lambda name, tensors: tensors.update({name: torch.zeros(3)}), r"torch.float32 \(3,\), not"),
    "a type": (lambda name, tensors: tensors.update({name: tensors[name].double()}), "torch.float64"),
    "NaN": (lambda name, tensors: tensors[name].view(-1)[0].fill_(torch.nan), "not finite"),
}


@pytest.mark.parametrize(("change", "words"), TENSORS.values(), ids=TENSORS)
def test_a_checkpoint_of_another_model(run, capsys, change, words):
    tensors = load_file(run / CHECKPOINT)
    change(min(tensors), tensors)
    save_file(tensors, run / CHECKPOINT)
    refuses(run, capsys, words)


NAMES = {
    "a hole": (lambda name: name.replace("/0", "/7"), "states of another plan"),
    "another layer": (lambda name: "features/0", "states of another plan"),
    "no place": (lambda name: "features", "states of another plan"),
}


@pytest.mark.parametrize(("rename", "words"), NAMES.values(), ids=NAMES)
def test_states_of_another_plan(run, capsys, rename, words):
    tensors = load_file(run / STATES)
    save_file(
        {rename(name) if number == 0 else name: tensors[name] for number, name in enumerate(sorted(tensors))}, run / STATES
    )
    assert main(["--resume", str(run)]) == 2
    assert words in capsys.readouterr().err


def test_a_run_without_its_states_is_not_gone_on_with_from_others(run, capsys):
    (run / STATES).unlink()
    assert main(["--resume", str(run)]) == 2
    assert "states" in capsys.readouterr().err


def test_old_checkpoints_and_unfinished_files_are_gone_after_resuming(run):
    old = run / CHECKPOINT.replace("0002", "0001")
    shutil.copy(run / CHECKPOINT, old)
    parts = [run / ".plans.json.01234567.part", run / "checkpoints" / ".x.safetensors.01234567.part"]
    for part in parts:
        part.write_text("half")
    assert main(["--resume", str(run)]) == 0
    assert not any(path.exists() for path in (old, *parts))


def test_figures_that_a_killed_process_did_not_draw_are_drawn(tmp_path):
    assert main([*SMALL, "--layers", "0", "--rounds", "0", "--method", "exact", "--out", str(tmp_path / "run")]) == 0
    whole = contents(tmp_path / "run")
    (tmp_path / "run" / "memory.png").unlink()
    assert main(["--resume", str(tmp_path / "run")]) == 0
    assert contents(tmp_path / "run") == whole


def test_several_seeds_go_on_from_any_folder(tmp_path, monkeypatch):
    weights = tmp_path / "weights.safetensors"
    from fedact.models import make_model

    save_file(make_model("mobilenet_v2", 10, 0.1).state_dict(), weights)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    command = [*SMALL, "--layers", "0", "--rounds", "1", "--method", "exact", "--seeds", "2", "--weights", weights.name]
    with monkeypatch.context() as patch:
        patch.setattr(server.PartialFedAvg, "finish_round", stopping_after(1))
        assert main([*command, "--out", "run"]) == 130
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["--resume", "../run"]) == 0
