"""Plans that are made again: when, on what grounds, and that a run which was cut off goes on with the plans on disk."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from fedact.config.budgets import UNBOUNDED
from fedact.config.errors import ConfigError
from fedact.config.loading import make_config
from fedact.config.plan import Plan, PlanKey, plans_from_json, plans_json
from fedact.federation import plan_tasks, planning
from fedact.federation.planning import current_key, make_plans, replan_if_worse
from fedact.federation.replanning import PlanBook, is_due
from fedact.simulate import main
from fedact.storage.run_folder import RunFolder
from fedact.training.workspace import Workspace, prepare
from tests.support.planned import plan_for
from tests.support.runs import FEW, FEW_SETTINGS, SMALL, rows, timeless

MIXED = [*FEW, "--method", "quantize:bits=4", "--budget", "450KB:1,500KB:1,2KB:1", "--rounds", "4"]


# Keys ----------------------------------------------------------------------------------------------------------------------

budgets = st.none() | st.integers(1, 2**62)


@given(budgets, st.integers(1, 10**6))
def test_a_key_reads_back(budget, number):
    assert PlanKey.parse(str(PlanKey(budget, number))) == PlanKey(budget, number)


@pytest.mark.parametrize(
    "key", ["", "512KB", "-5", "512000@", "512000@1", "512000@0", "512000@02", "@4", "5@4@5", "None", "0512", "512.0"]
)
def test_what_is_no_key_is_refused(key):
    with pytest.raises(ConfigError, match="names no plan"):
        PlanKey.parse(key)


@given(st.dictionaries(budgets, st.sets(st.integers(2, 30), max_size=5), min_size=1), st.integers(0, 40), st.data())
def test_the_plan_in_a_round_is_the_last_one_made_until_then(made, number, data):
    plans = {PlanKey(budget, first): None for budget, rounds in made.items() for first in {1, *rounds}}
    budget = data.draw(st.sampled_from(list(made)))
    first = max(first for first in {1, *made[budget]} if first <= max(number, 1))
    assert current_key(plans, budget, number) == PlanKey(budget, first)


def test_plans_read_back_under_their_keys():
    first, again = plan_for("20KB"), replace(plan_for("20KB"), expected_error=0.5)
    plans = {"exact": {PlanKey(20_000): first, PlanKey(20_000, 4): again, PlanKey(None): plan_for(None)}}
    written = json.loads(plans_json(plans))
    assert list(written["exact"]) == ["20000", "20000@4", "none"]
    assert plans_from_json(written) == plans


def test_a_plan_under_anothers_key_is_refused():
    with pytest.raises(ConfigError, match="20000 bytes"):
        plans_from_json(json.loads(plans_json({"exact": {PlanKey(30_000): plan_for("20KB")}})))


# When ----------------------------------------------------------------------------------------------------------------------


def test_auto_looks_often_at_first_and_then_seldom():
    assert [number for number in range(70) if is_due("auto", number)] == [2, 3, 5, 9, 17, 33, 65]


@given(st.integers(1, 50), st.integers(0, 200))
def test_a_number_looks_before_each_of_its_multiples_but_not_before_the_first_round(every, number):
    assert is_due(every, number) == (number > 1 and number % every == 0)
    assert not is_due("never", number)


@pytest.mark.parametrize("replan", ["auto", "never", "3", 3])
def test_how_often_is_a_word_or_a_number(replan):
    assert str(make_config({"replan": replan}).replan) == str(replan)


@pytest.mark.parametrize("replan", ["sometimes", 0, -1, 1.5, True])
def test_anything_else_is_refused(replan):
    with pytest.raises(ConfigError, match="--replan"):
        make_config({"replan": replan})


# On what grounds -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workspace() -> Workspace:
    return prepare(make_config({**FEW_SETTINGS, "budget": "8KB", "scope": "saved", "layers": 2}))


@pytest.fixture(scope="module", params=["quantize:bits=4", "auto", "lance:variance=0.8"])
def plan(request, workspace) -> Plan:
    (made,) = make_plans(workspace, request.param).values()
    return made


def test_given_settings_that_no_budget_bounds_are_not_looked_at(workspace, monkeypatch):
    config = workspace.experiment.config.model_copy(update={"budget": UNBOUNDED})
    unbounded = Workspace(replace(workspace.experiment, config=config), workspace.model)
    (plan,) = make_plans(unbounded, "quantize:bits=4").values()
    (calibrated,) = make_plans(unbounded, "lance:variance=0.8").values()
    looked = []
    monkeypatch.setattr(planning, "expected_error", lambda model, plan, example, loss: looked.append(plan.method) or 0.0)
    assert plan.expected_error > 0
    assert replan_if_worse(unbounded, plan, {}) is plan
    assert replan_if_worse(unbounded, calibrated, {}) is calibrated
    assert looked == ["lance:variance=0.8"]


def moved(workspace: Workspace, by: float = 0.02) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    start = {name: t for name, t in workspace.experiment.start.items() if name.startswith(("features.17", "features.18"))}
    return {name: t + by * torch.randn(t.shape, generator=generator) for name, t in start.items() if t.ndim == 4}


def test_where_nothing_was_trained_nothing_is_made_again(workspace, plan):
    assert replan_if_worse(workspace, plan, {}) is plan


@pytest.mark.parametrize("growth", [1.25, 1.3])
def test_a_plan_is_made_again_where_its_error_grew_by_more_than_a_quarter(workspace, growth, monkeypatch, caplog):
    (plan,) = make_plans(workspace, "quantize:bits=4").values()
    seen = []

    def error(model, looked_at, example, loss):
        seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return growth * plan.expected_error

    monkeypatch.setattr(planning, "expected_error", error)
    tensors = moved(workspace)
    with caplog.at_level("INFO", logger="fedact"):
        again = replan_if_worse(workspace, plan, tensors)
    assert all(torch.equal(seen[0][name], tensor) for name, tensor in tensors.items())
    assert (again is plan) == (growth == 1.25)
    if again is not plan:
        same = ("budget_bytes", "method", "layers", "scope", "batch_size", "status")
        assert all(getattr(again, name) == getattr(plan, name) for name in same)
        assert again.expected_error not in (None, 0, plan.expected_error)
        assert "plan 8000: gradient error" in caplog.text


def test_a_plan_made_again_is_no_worse_and_says_the_error_of_the_weights_as_they_are(workspace, plan, monkeypatch):
    monkeypatch.setattr(planning, "TOLERANCE", 0)
    again, example = replan_if_worse(workspace, plan, moved(workspace)), planning.calibration_batch(workspace.experiment)
    before, after = (
        planning.expected_error(workspace.model_with(moved(workspace)), each, example) for each in (plan, again)
    )
    assert after <= before != plan.expected_error
    if plan.method != "auto":
        assert again.expected_error == pytest.approx(after)


@pytest.mark.parametrize("change", [{"expected_error": None}, {"expected_error": 0.0}, {"status": "skipped"}])
def test_a_plan_that_cannot_age_is_not_looked_at(workspace, change, monkeypatch):
    monkeypatch.setattr(planning, "expected_error", lambda *arguments: pytest.fail("looked at"))
    plan = replace(plan_for("20KB"), **{"expected_error": 0.1, **change})
    assert replan_if_worse(workspace, plan, {}) is plan


def test_trained_layers_stay_nothing_gets_worse_and_what_gave_way_at_first_is_still_said(workspace, monkeypatch):
    monkeypatch.setattr(planning, "expected_error", lambda *arguments: 1.0)
    first = replace(plan_for("20KB"), expected_error=0.1, layers=3, reason="layers 9 to 3; micro-batch 8 to 4")
    asked = []

    def make(*arguments, **settings):
        asked.append(arguments)
        return replace(first, reason="micro-batch 8 to 2", micro_batch=2)

    monkeypatch.setattr(planning, "make_plan", make)
    again = replan_if_worse(workspace, first, {})
    assert (again.micro_batch, again.reason) == (2, "layers 9 to 3; micro-batch 8 to 2")
    assert asked[0][4] == 3
    for worse in ({"layers": 0, "status": "head-only"}, {"status": "skipped"}, {"expected_error": 1.1}):
        monkeypatch.setattr(planning, "make_plan", lambda *a, worse=worse, **s: replace(first, **worse))
        assert replan_if_worse(workspace, first, {}) is first


def test_the_slowdown_that_was_asked_for_reaches_the_planner(monkeypatch):
    asked = []
    monkeypatch.setattr(planning, "make_plan", lambda *arguments, **settings: asked.append(arguments) or plan_for("20KB"))
    make_plans(prepare(make_config({**FEW_SETTINGS, "budget": "20KB", "max_slowdown": 2.5})), "exact")
    assert asked[0][6] == 2.5


@pytest.mark.parametrize("slowdown", [0, -1, float("nan"), float("inf"), "fast"])
def test_a_slowdown_is_a_positive_number(slowdown):
    with pytest.raises(ConfigError, match="--max-slowdown"):
        make_config({"max_slowdown": slowdown})


# In a run ------------------------------------------------------------------------------------------------------------------


def halved(workspace: Workspace, plan: Plan, tensors) -> Plan:
    """Stand in for a plan made again: half the micro-batch, told apart by the weights it was made for."""
    if plan.budget_bytes != 500_000:
        return plan
    weight = float(sum(tensor.double().abs().sum() for tensor in tensors.values()))
    half = max(1, plan.micro_batch // 2)
    kept = tuple(replace(each, shape=(half, *each.shape[1:])) for each in plan.kept)
    return replace(plan, micro_batch=half, kept=kept, expected_error=weight)


@pytest.fixture(scope="module")
def remade(tmp_path_factory) -> Path:
    """A finished run of four rounds whose plan for 500 KB was made again before rounds 2 and 3."""
    folder = tmp_path_factory.mktemp("run") / "remade"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan_tasks, "replan_if_worse", halved)
        assert main([*MIXED, "--out", str(folder)]) == 0
    return folder


def plans_of(folder: Path) -> dict[str, dict]:
    return json.loads((folder / "plans.json").read_text())["quantize:bits=4"]


def test_rows_name_the_plan_they_went_by(remade):
    plans, clients = plans_of(remade), [row for row in rows(remade) if row["kind"] == "client"]
    assert set(plans) == {"450000", "500000", "2000", "500000@2", "500000@3"}
    assert [row["plan"] for row in clients if row["budget_bytes"] == 500_000] == [
        "500000",
        "500000@2",
        "500000@3",
        "500000@3",
    ]
    assert {row["plan"] for row in clients if row["budget_bytes"] == 450_000} == {"450000"}
    for row in clients:
        assert row["micro_batch"] == plans[row["plan"]]["micro_batch"]
        assert row["trained_layers"] == plans[row["plan"]]["layers"]
        if row["status"] != "skipped":
            assert row["peak_bytes"] <= plans[row["plan"]]["peak_bytes"]


@pytest.mark.parametrize(
    ("number", "when"),
    [
        (2, "before training"),
        (3, "before looking"),
        pytest.param(3, "before training", marks=pytest.mark.exhaustive),
        pytest.param(4, "before looking", marks=pytest.mark.exhaustive),
    ],
)
def test_a_run_that_was_cut_off_goes_on_with_the_plans_on_disk(remade, tmp_path, monkeypatch, when, number):
    asked = remaking(monkeypatch)
    cut_off_in(monkeypatch, number, when)
    assert main([*MIXED, "--out", str(tmp_path / "run")]) == 130
    made = [key for key in plans_of(tmp_path / "run") if "@" in key]
    assert made == [f"500000@{first}" for first in (2, 3) if first < number + (when == "before training")]
    monkeypatch.undo()
    asked = remaking(monkeypatch)
    assert main(["--resume", str(tmp_path / "run")]) == 0
    assert asked.count(500_000) == 2 - len(made)
    assert timeless(tmp_path / "run") == timeless(remade)
    assert (tmp_path / "run" / "plans.json").read_bytes() == (remade / "plans.json").read_bytes()


def remaking(monkeypatch) -> list[int | None]:
    """Put the stand-in into its place and return the budgets whose plans it will have been asked for."""
    asked: list[int | None] = []
    stand_in = lambda workspace, plan, tensors: asked.append(plan.budget_bytes) or halved(workspace, plan, tensors)  # noqa: E731
    monkeypatch.setattr(plan_tasks, "replan_if_worse", stand_in)
    return asked


def cut_off_in(monkeypatch, number: int, when: str) -> None:
    replan = PlanBook.replan

    def cut(self, this_round, tensors):
        if when == "before training":
            replan(self, this_round, tensors)
        if this_round == number:
            raise KeyboardInterrupt
        if when == "before looking":
            replan(self, this_round, tensors)

    monkeypatch.setattr(PlanBook, "replan", cut)


def test_looking_changes_nothing_where_no_plan_has_aged(tmp_path, monkeypatch):
    monkeypatch.setattr(planning, "TOLERANCE", float("inf"))
    command = [*FEW, "--method", "auto", "--budget", "8KB", "--scope", "saved", "--rounds", "3"]
    assert main([*command, "--replan", "1", "--out", str(tmp_path / "looked")]) == 0
    monkeypatch.setattr(plan_tasks, "replan_if_worse", lambda *arguments: pytest.fail("looked at"))
    assert main([*command, "--replan", "never", "--out", str(tmp_path / "never")]) == 0
    assert timeless(tmp_path / "looked") == timeless(tmp_path / "never")
    assert (tmp_path / "looked" / "plans.json").read_bytes() == (tmp_path / "never" / "plans.json").read_bytes()


def test_states_are_found_with_the_weights_that_the_plan_was_made_for(tmp_path, workspace, monkeypatch):
    monkeypatch.setattr(planning, "TOLERANCE", 0)
    method, weights = "lance:variance=0.8", moved(workspace)
    book = PlanBook(method, workspace, RunFolder(tmp_path), {method: make_plans(workspace, method)})
    book.replan(2, weights)
    for key, tensors in ((PlanKey(8_000), {}), (PlanKey(8_000, 2), weights)):
        expected = planning.calibrated_states(workspace, book.plans[key], tensors)
        assert expected.keys() == book.states(key).keys() != set()
        assert all(torch.equal(state, book.states(key)[name]) for name, state in expected.items())
    first = planning.calibrated_states(workspace, book.plans[PlanKey(8_000, 2)])
    assert not all(torch.equal(state, book.states(PlanKey(8_000, 2))[name]) for name, state in first.items())


def test_states_found_for_a_plan_made_again_outlast_an_interruption(tmp_path, monkeypatch):
    monkeypatch.setattr(planning, "TOLERANCE", 0)
    command = [*FEW, "--method", "lance:variance=0.8", "--budget", "430KB", "--rounds", "3", "--replan", "2"]
    assert main([*command, "--out", str(tmp_path / "whole")]) == 0
    cut_off_in(monkeypatch, 3, "before training")
    assert main([*command, "--out", str(tmp_path / "run")]) == 130
    monkeypatch.undo()
    assert main(["--resume", str(tmp_path / "run")]) == 0
    clients = [row for row in rows(tmp_path / "run") if row["kind"] == "client"]
    assert [row["plan"] for row in clients] == ["430000"] * 3 + ["430000@2"] * 6
    assert all(row["state_bytes"] > 0 for row in clients)
    assert timeless(tmp_path / "run") == timeless(tmp_path / "whole")
    (file,) = (tmp_path / "run" / "checkpoints").glob("*states*")
    assert file.read_bytes() == (tmp_path / "whole" / "checkpoints" / file.name).read_bytes()


@pytest.mark.parametrize("missing", ["2000", "500000"])
def test_a_run_without_one_of_its_first_plans_is_refused(remade, tmp_path, capsys, missing):
    shutil.copytree(remade, tmp_path / "run")
    records, plans = (remade / "records.jsonl").read_text().splitlines(keepends=True), plans_of(remade)
    (tmp_path / "run" / "records.jsonl").write_text("".join(records[:2]))
    (tmp_path / "run" / "plans.json").write_text(
        json.dumps({"quantize:bits=4": {k: p for k, p in plans.items() if k != missing}})
    )
    assert main(["--resume", str(tmp_path / "run")]) == 2
    assert f"lacks the plan {missing!r} of quantize:bits=4" in capsys.readouterr().err


def test_new_plans_states_are_also_those_of_frozen_layers_that_others_inputs_are_made_again_from(tmp_path, monkeypatch):
    monkeypatch.setattr(planning, "TOLERANCE", 0)
    asked = ["--layers", "2", "--rounds", "2", "--replan", "1", "--budget", "500KB", "--method", "lance:derive=2"]
    assert main([*SMALL, *asked, "--out", str(tmp_path / "run")]) == 0
    (file,) = (tmp_path / "run" / "checkpoints").glob("*states-500000@2*")
    # The input of features.17.conv.2, which is trained, follows from that of its block's first layer.
    assert {name.rpartition("/")[0] for name in load_file(file)} >= {"features.17.conv.0.0"}
