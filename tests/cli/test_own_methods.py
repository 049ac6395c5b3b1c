"""A method of one's own at every door: what runs, what is kept of it, what a bad one is told; nothing is written then."""

import json
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest

import fedact
from fedact import bench, compare, plan, simulate
from fedact.compression import METHODS
from fedact.config.code import PRIVATE
from fedact.config.errors import ConfigError
from fedact.config.loading import read_toml
from fedact.config.plan import Plan
from fedact.federation.node import read_node
from fedact.laws import LAWS
from fedact.laws.__main__ import main as laws
from tests.support.broken_methods import Half
from tests.support.own_code import FLEET, flags
from tests.support.own_methods import BAD, MINE, install, write_mine
from tests.support.own_network import FEW, build
from tests.support.runs import rows, timeless

SMALL = {**FLEET, "dataset": "synthetic", "model": "tests.support.own_network:build", "max_examples": 60, "resolution": 12}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_mine(tmp_path)
    return tmp_path


def run(out: str, methods: list[str], *more: str) -> int:
    return simulate.main([*flags({**SMALL, "method": methods}), "--out", out, *more])


def refused(capsys, command, arguments: list[str]) -> str:
    before = sorted(Path().rglob("*"))
    capsys.readouterr()
    assert command(arguments) == 2
    output, error = capsys.readouterr()
    assert not output
    assert error.startswith("fedact: ")
    assert error.count("\n") == 1
    assert [path for path in sorted(Path().rglob("*")) if "__pycache__" not in str(path)] == before
    return error


def test_a_run_trains_by_it_beside_fedacts_own_and_goes_on(folder, capsys):
    assert run("out", ["mine.py:Half:scale=2", "exact"], "--workers", "1") == 0
    name = f"{folder}/mine.py:Half:scale=2"
    shown = capsys.readouterr().out
    assert "mine.py:Half:scale=2" in shown
    assert str(folder / "mine.py") not in shown
    config = read_toml(Path("out/config.toml"))
    assert config["method"] == [name, "exact"]
    digests = {code: digest for code, digest in config["code"].items() if "mine.py" in code}
    assert digests == {f"{folder}/mine.py:Half": sha256(Path("mine.py").read_bytes()).hexdigest()}
    found = {row["method"]: row for row in rows(Path("out")) if row["kind"] == "client"}
    assert found[name]["status"] == "ok"
    assert found[name]["paper_bytes"]
    before = timeless(Path("out"))
    assert "--own-code" in refused(capsys, simulate.main, ["--resume", "out"])
    assert simulate.main(["--resume", "out", "--own-code"]) == 0
    assert timeless(Path("out")) == before
    # Comparing reads names, and runs nothing: the file may be gone.
    Path("mine.py").unlink()
    for module in [module for module in sys.modules if module.startswith(PRIVATE)]:
        del sys.modules[module]
    assert compare.main(["out", "--out", "compared"]) == 0
    assert "mine.py:Half:scale=2" in capsys.readouterr().out
    assert "there is no file" in refused(capsys, simulate.main, ["--resume", "out", "--own-code"])


def test_another_file_of_the_name_is_refused_and_another_method_added(folder, capsys):
    assert run("out", ["mine.py:Half"], "--workers", "1") == 0
    Path("mine.py").write_text(f"{MINE}\n# changed\n")
    assert "mine.py:Half has changed" in refused(capsys, simulate.main, ["--resume", "out", "--own-code"])
    write_mine(folder)
    write_mine(folder, name="other.py")
    assert run("out", ["mine.py:Half", "other.py:Half:scale=4"]) == 0
    names = {row["method"] for row in rows(Path("out")) if row["kind"] == "round"}
    assert names == {f"{folder}/mine.py:Half", f"{folder}/other.py:Half:scale=4"}


def test_the_plans_of_a_run_on_disk_run_no_code(folder, capsys):
    assert run("out", ["mine.py:Half"], "--workers", "1") == 0
    Path("evil.py").write_text(f"open('ran', 'w').close()\n{MINE}")
    plans = Path("out/plans.json")
    changed = json.loads(plans.read_text())
    for each in changed.values():
        for one in each.values():
            for kept in one["kept"]:
                kept["method"] = f"{folder}/evil.py:Half"
    plans.write_text(json.dumps(changed))
    more = [*flags({**SMALL, "method": ["mine.py:Half", "exact"]}), "--out", "out", "--workers", "1"]
    assert "runs none" in refused(capsys, simulate.main, more)
    assert not Path("ran").exists()


@pytest.mark.slow
def test_workers_make_the_same_rows(folder):
    for workers in ("1", "2"):
        assert run(workers, ["mine.py:Half:scale=2"], "--workers", workers) == 0
    assert timeless(Path("1")) == timeless(Path("2"))


def test_plan_and_bench_take_it(folder, capsys):
    common = [
        "--dataset",
        "synthetic",
        "--model",
        "tests.support.own_network:build",
        "--weights",
        "none",
        "--batch-size",
        "4",
    ]
    common += ["--resolution", "12", "--layers", "1", "--method", "mine.py:Half:scale=2"]
    assert plan.main([*common, "--budget", "200KB", "--json", "plan.json"]) == 0
    assert f"{folder}/mine.py:Half:scale=2" in json.loads(Path("plan.json").read_text())
    assert bench.main([*common, "--batches", "1", "--steps", "0", "--draws", "2", "--json", "bench.json"]) == 0
    assert capsys.readouterr().out.count("mine.py:Half:scale=2") >= 3
    assert f"{folder}/mine.py:Half:scale=2" in Path("bench.json").read_text()


WRONG = {
    "mine.py:Half:scale=9": "scale is above 0 and at most 8, not 9",
    "mine.py:Half:size=1": "unknown setting of method mine.py:Half 'size'",
    "mine.py:Haf": "did you mean 'Half'",
    "mine.py": "write which of its classes",
    "mein.py:Half": "did you mean 'mine.py'",
    "tests.support.broken_methods:InPlace": "changes its input in place",
    "tests.support.broken_methods:Fails": "RuntimeError: no way",
    "no.such.module:Half": "there is no module no",
}


@pytest.mark.parametrize("text", WRONG)
@pytest.mark.parametrize("door", [simulate, plan, bench], ids=lambda door: door.__name__)
def test_a_bad_method_is_one_line_at_every_door(folder, capsys, door, text):
    out = ["--out", "out"] if door is simulate else ["--json", "out.json"]
    arguments = ["--model", SMALL["model"], "--dataset", "synthetic", "--resolution", "12", "--method", text, *out]
    assert WRONG[text] in refused(capsys, door.main, arguments)


@pytest.mark.parametrize("raised", ["ValueError('no\\nway')", "SystemExit(0)"])
def test_a_method_that_fails_later_is_one_line_that_says_where(folder, capsys, raised):
    late = f"        if compressed.tensors[0].numel() > 500: raise {raised}\n        return super().reconstruct(compressed)"
    write_mine(folder, f"@dataclass(frozen=True)\nclass Late(Half):\n    def reconstruct(self, compressed):\n{late}")
    assert run("out", ["mine.py:Late"], "--budget", "none") == 1
    error = capsys.readouterr().err.splitlines()
    assert error[-1].startswith(f"fedact: {folder}/mine.py, line ")
    assert error[-1].endswith(f"fails: {raised.split('(')[0]}: {'no way' if 'no' in raised else '0'}")
    assert not Path("out").exists()


def test_code_that_is_no_method_is_one_line(folder, capsys):
    for more, (name, says) in BAD.items():
        write_mine(folder, more)
        error = refused(capsys, simulate.main, ["--method", f"mine.py:{name}", "--dataset", "synthetic", "--out", "out"])
        assert says.split(".*")[0].replace("\\", "") in error


def test_two_names_of_one_method_are_one(folder, capsys):
    methods = ["--method", "mine.py:Half:scale=1", "--method", f"{folder}/mine.py:Half", "--dataset", "synthetic"]
    assert "is given twice" in refused(capsys, simulate.main, [*methods, "--out", "out"])


# From Python ------------------------------------------------------------------------------------------------------------


def test_a_method_is_an_object_in_a_fleet_from_python(folder):
    few = {**FEW, "rounds": 1, "workers": 1, "quiet": True}
    few.pop("method")
    run = fedact.run(build, method=[Half(), METHODS["quantize"](bits=8)], out="out", **few)
    assert list(dict.fromkeys(run.rounds["method"])) == ["tests.support.broken_methods:Half", "quantize:bits=8"]
    assert fedact.run(build, method=[Half(), "quantize:bits=8"], out="out", **few).rounds.equals(run.rounds)
    with pytest.raises(ConfigError, match=r"method is 3: it is a name, a fedact\.compression\.Method"):
        fedact.run(build, method=[3], out="other", **few)
    assert not Path("other").exists()


# Installed packages, real devices -----------------------------------------------------------------------------------------


def test_the_list_has_what_packages_bring(folder, capsys, monkeypatch):
    install(folder, "brought", {"half": "brought:Half", "exact": "brought:Half", "gone": "brought:Gone"})
    monkeypatch.syspath_prepend(folder)
    assert simulate.main(["--list"]) == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "From package brought" in shown
    assert "Refused: package brought brings it, and one of fedact's own has that name." in shown
    assert "Refused: method 'gone' of package brought fails: AttributeError" in shown


def test_a_node_runs_its_own_file_of_the_same_content_alone(folder, tmp_path):
    write_mine(tmp_path, name="here.py")
    (tmp_path / "changed.py").write_text(MINE + "\n")
    digest = sha256((tmp_path / "here.py").read_bytes()).hexdigest()
    kept = {"name": "0", "shape": [1, 2], "method": "/server/mine.py:Half:scale=2", "cap_bytes": 4}
    row = json.loads(fedact.make_plan(build(3), None, example(), method="exact", layers=0, scope="saved").to_json()) | {
        "method": "/server/mine.py:Half:scale=2",
        "kept": [kept],
    }
    order = Plan.from_json(json.dumps(row))

    def node(own: str):
        return read_node({"partition-id": 0, "num-partitions": 1, "own-code": own})

    translated = node(f"{tmp_path}/here.py:Half").own_plan(order, {"/server/mine.py:Half": digest})
    assert translated.kept[0].method == translated.method == f"{tmp_path}/here.py:Half:scale=2"
    for own in ("", f"{tmp_path}/changed.py:Half", f"{tmp_path}/here.py:Other"):
        with pytest.raises(ConfigError, match="this node runs none but"):
            node(own).own_plan(order, {"/server/mine.py:Half": digest})


def example():
    import torch

    return torch.rand(2, 3, 12, 12), torch.tensor([0, 1])


# The laws' own command ----------------------------------------------------------------------------------------------------


def test_the_laws_of_ones_own_method(folder, capsys):
    assert laws(["mine.py:Half", "--examples", "3", "--json", "laws.json"]) == 0
    written = json.loads(Path("laws.json").read_text())
    assert written["method"] == f"{folder}/mine.py:Half"
    assert {law["law"]: law["sentence"] for law in written["laws"]} == {name: law.sentence for name, law in LAWS.items()}
    assert {law["verdict"] for law in written["laws"]} == {"holds", "not checked"}
    assert "0 fail" in capsys.readouterr().out


def test_a_failing_law_prints_a_case_to_paste(folder, capsys):
    assert laws(["tests.support.broken_methods:InPlace", "--law", "input", "--law", "name"]) == 1
    shown = capsys.readouterr().out
    assert "1 of 2 laws hold, 1 fail, 0 not checked" in shown
    lines = shown.partition("# input: ")[2].splitlines()
    assert lines[0] == "compress changes its input in place"
    code = "\n".join(line for line in lines[1:] if line.startswith(("from ", "LAWS")))
    with pytest.raises(AssertionError, match="changes its input in place"):
        exec(code, {})


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "which method?"),
        (["mine.py:Haf"], "did you mean 'Half'"),
        (["mine.py:Half:scale=9"], "at most 8"),
        (["hosvd:varianc=1"], "did you mean 'variance'"),
        (["auto"], "auto mixes methods"),
        (["exact", "--law", "byte"], "did you mean 'bytes'"),
        (["exact", "--examples", "0"], "--examples is a whole number from 1, not 0"),
        (["exact", "--examples", "x"], "invalid int value"),
        (["exact", "--seed", "-1"], "--seed is a whole number from 0"),
        (["exact", "--json", "no/where.json"], "there is no folder"),
        (["exact", "hosvd"], "unknown argument 'hosvd'"),
        (["exact", "--exampels", "3"], "did you mean '--examples'"),
    ],
)
def test_bad_input_to_the_laws_is_one_line(folder, capsys, arguments, says):
    assert says in refused(capsys, laws, arguments)


def test_the_laws_need_their_extra(folder, capsys, monkeypatch):
    monkeypatch.setitem(fedact.config.errors.EXTRAS, "laws", ("no_such_package",))
    assert "needs the extra laws, which is not installed" in refused(capsys, laws, ["exact"])


def test_the_help_of_the_laws_is_light():
    script = "import sys; from fedact.laws.__main__ import main; main(['--help'])"
    found = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert "the smallest input that breaks the others" in " ".join(found.stdout.split())
    assert not [
        line for line in found.stderr.splitlines() if line.rpartition("|")[2].strip() in ("torch", "hypothesis", "flwr")
    ]
