"""The door fedact.plan: it prints and writes what make_plan returns, and what cannot be is refused in one line."""

import json
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import pytest

import fedact
from fedact.cli import plan as inspection
from fedact.cli.console import PROSE
from fedact.cli.plan import ladder, prepared
from fedact.config.loading import make_config
from fedact.config.plan import PlanKey, plans_from_json
from fedact.federation.planning import calibration_batch
from fedact.models import pretraining
from fedact.plan import main

SETTINGS = {"dataset": "synthetic", "max_examples": 300, "weights": "none", "width": 0.35, "resolution": 32, "batch_size": 4}
METHOD = "quantize"
SMALL = [text for name, value in SETTINGS.items() for text in (f"--{name.replace('_', '-')}", str(value))]
ONE = [*SMALL, "--layers", "1", "--method", METHOD]


def printed(capsys, *flags: str) -> str:
    assert main([*ONE, *flags]) == 0
    return capsys.readouterr().out


def plan_of(budget, layers=1, method=METHOD, scope="peak"):
    workspace = prepared(make_config(SETTINGS))
    model, example = workspace.model_with({}), calibration_batch(workspace.experiment)
    plan = fedact.make_plan(model, budget, example, method, layers, scope, momentum=True)
    return replace(plan, lr=make_config(SETTINGS).usual_lr)


def test_the_file_holds_what_make_plan_returns_for_every_method_and_distinct_budget(tmp_path, capsys):
    file = tmp_path / "plans.json"
    budget = "400KB:1,80KB:3,400000:2"
    printed(capsys, "--budget", budget, "--method", "exact", "--json", str(file))
    plans = plans_from_json(json.loads(file.read_text()))
    assert plans == {m: {PlanKey(b): plan_of(b, method=m) for b in (400_000, 80_000)} for m in (METHOD, "exact")}


def test_every_kept_tensor_and_every_figure_is_printed(capsys):
    plan, more = plan_of("72KB", method="exact"), plan_of("144KB", method="exact")
    assert main([*SMALL, "--layers", "1", "--method", "exact", "--budget", "72KB"]) == 0
    shown = capsys.readouterr().out
    for kept in plan.kept:
        row = next(line for line in shown.splitlines() if line.strip().startswith(kept.name))
        assert "x".join(map(str, kept.shape)) in row
        assert f"{kept.cap_bytes:,}" in row
    sizes = (plan.saved_bytes, plan.peak_bytes, plan.paper_bytes, plan.vanilla_saved_bytes, plan.weight_bytes,
             plan.gradient_bytes, plan.optimizer_bytes, 72_000, 144_000, more.peak_bytes)  # fmt: skip
    assert all(f"{size:,}" in shown for size in sizes)
    assert "the last 1 of 52 convolutions" in shown
    assert f"; {plan.micro_batch} of 4 examples" in shown
    assert plan.reason in shown
    assert max(map(len, shown.splitlines())) <= PROSE


def test_without_a_budget_nothing_gives_way_and_nothing_is_doubled(capsys):
    shown = printed(capsys, "--budget", "none")
    assert "no budget" in shown
    assert "twice" not in shown


@pytest.mark.parametrize(("flags", "scope"), [([], "peak"), (["--scope", "peak"], "peak"), (["--scope", "saved"], "saved")])
def test_a_budget_is_held_against_the_bytes_that_it_bounds_by_default_the_peak(flags, scope, capsys):
    plan = plan_of("2MB", scope=scope)
    shown = printed(capsys, "--budget", "2MB", *flags)
    for name in ("peak", "saved"):
        assert (f"{getattr(plan, f'{name}_bytes'):,} of 2,000,000" in shown) == (name == scope)


def test_a_skipped_plan_tells_the_least_bytes_and_what_twice_the_budget_would_do(tmp_path, capsys):
    file = tmp_path / "plans.json"
    shown = printed(capsys, "--budget", "9", "--json", str(file))
    (plan,) = plans_from_json(json.loads(file.read_text()))[METHOD].values()
    assert plan.status == "skipped"
    assert f"{plan.least_bytes:,} peak bytes" in " ".join(shown.split())
    assert "18 would buy nothing" in shown


def test_the_head_alone_is_shown_as_such(capsys):
    shown = printed(capsys, "--layers", "0")
    assert "the head alone" in shown
    assert "classifier.1" in shown


def test_a_figure_is_drawn_around_the_budget(tmp_path, capsys, monkeypatch):
    drawn = {}

    def draw(title, ladders, asked, real=inspection.plans_against_budget):
        drawn.update(ladders=ladders, asked=asked)
        return real(title, ladders, asked)

    monkeypatch.setattr(inspection, "plans_against_budget", draw)
    printed(capsys, "--budget", "64KB", "--figure", str(tmp_path / "figure.png"))
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert drawn["asked"] == [64_000]
    for plans in drawn["ladders"].values():
        assert [plan.budget_bytes for plan in plans] == [8_000, 16_000, 32_000, 64_000, 128_000, 256_000, 512_000]
    assert list(drawn["ladders"]) == [METHOD, "exact"]


def test_auto_is_the_method_where_none_is_given(tmp_path):
    file = tmp_path / "plans.json"
    assert main([*SMALL, "--layers", "1", "--budget", "80KB", "--json", str(file)]) == 0
    assert plans_from_json(json.loads(file.read_text())) == {"auto": {PlanKey(80_000): plan_of(80_000, method="auto")}}


def test_a_bound_on_the_time_is_passed_on_and_told(capsys):
    says = {"1000": "x when it was planned", "1e-9": "takes more than 1e-09 times as long as plain training"}
    for most, words in says.items():
        shown = printed(capsys, "--max-slowdown", most, "--budget", "none")
        assert words in " ".join(shown.split())


@pytest.mark.parametrize(("least", "most"), [(1, 1), (7, 7), (512_000, 512_000), (256_000, 4_000_000)])
def test_a_ladder_goes_from_an_eighth_to_eight_times_by_doubling(least, most):
    rungs = ladder(least, most)
    assert rungs[0] == max(1, least // 8)
    assert all(second == 2 * first for first, second in pairwise(rungs))
    assert rungs[-2] < 8 * most <= rungs[-1]


def test_what_is_pretrained_for_many_pixels_is_so_at_few(monkeypatch):
    sides = []
    monkeypatch.setattr(pretraining, "_train", lambda model, loader, *_: sides.append(loader.preprocessing.resolution))
    settings = {"max_examples": 500, "model": "mobilenet_v2", "batch_size": 2, "dataset": "digits"}
    few, many = (prepared(make_config({**settings, "resolution": side})).experiment for side in (32, 80))
    assert sides == [32, 64]
    assert [each.preprocessing.resolution for each in (few, many)] == [32, 80]
    assert [each.config.resolution for each in (few, many)] == [32, 80]
    assert calibration_batch(many)[0].shape == (2, 3, 80, 80)
    assert many.config.width == 1


def test_a_batch_is_planned_on_as_many_examples_unless_told_otherwise(monkeypatch):
    seen = []
    monkeypatch.setattr(inspection, "show_plans", lambda config, options: seen.append(config.calibration) or 0)
    for flags in (["--batch-size", "4"], ["--batch-size", "200"], ["--batch-size", "200", "--calibration", "8"]):
        main(flags)
    assert seen == [64, 200, 8]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--budgt", "5KB"], "did you mean '--budget'"),
        (["--method", "hosdv"], "did you mean 'hosvd'"),
        (["--method", "hosvd", "--method", "hosvd:batch=true"], "given twice"),
        (["--model", "mobilenet"], "did you mean 'mobilenet_v2'"),
        (["--dataset", "digit"], "did you mean 'digits'"),
        (["--model", "resnet18", "--width", "0.5"], "one width"),
        (["--layers", "99"], "52 convolutions"),
        (["--layers", "few"], "'auto'"),
        (["--budget", "much"], "neither a size"),
        (["--scope", "all"], "'saved' or 'peak'"),
        (["--max-slowdown", "0"], "greater than 0"),
        (["--max-slowdown", "nan"], "finite"),
        (["--max-slowdown", "fast"], "valid number"),
        (["--rounds", "3"], "unknown argument"),
        (["--json", "/nowhere/plans.json"], "no folder"),
        (["--json", "/"], "cannot be written"),
        (["--figure", "plans.pdf"], "ends in .png"),
        (["--weights", "nowhere.safetensors"], "no such file"),
    ],
)
def test_bad_input_is_one_line(flags, says, capsys):
    assert main([*SMALL, *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("fedact: ")
    assert says in error
    assert error.count("\n") == 1


def test_help_names_every_flag_and_imports_no_torch():
    code = (
        "import sys; from fedact.plan import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'flwr', 'torchvision', 'pandas', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for flag in ("--model", "--width", "--weights", "--dataset", "--data-dir", "--max-examples", "--resolution",
                 "--batch-size", "--budget", "--scope", "--method", "--layers", "--update", "--train-norm", "--calibration",
                 "--seed", "--device", "--devices", "--max-slowdown", "--json", "--figure"):  # fmt: skip
        assert flag in done.stdout
