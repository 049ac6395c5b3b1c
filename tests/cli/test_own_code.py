"""A network and data of the user's own on the command line: what runs, what is kept of it, and who may let it run."""

import json
import re
import shlex
import shutil
from hashlib import sha256
from pathlib import Path

import pytest
import torch

import fedact
from fedact import bench, compare, plan
from fedact.config.code_digests import code_digest
from fedact.config.code_loading import load_code
from fedact.config.loading import make_config, read_toml
from fedact.config.own_code import with_code
from fedact.config.plan import Plan
from fedact.federation.node import device_config, read_node
from fedact.models.own import own_network
from fedact.simulate import main
from fedact.training.workspace import close_workspaces, prepare
from tests.support.own_code import FLEET, LAYERS, NETWORK, flags, own_files
from tests.support.paths import ROOT
from tests.support.refusal import quiet_home, refused  # noqa: F401
from tests.support.runs import rows, timeless

OTHER = NETWORK.replace("norm(12)", "norm(12), nn.Tanh()")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        own_files(folder)
        names = ["--model", "mynet.py:build", "--dataset", "mydata.py:load"]
        assert main([*names, *flags(FLEET), "--out", "run", "--workers", "1"]) == 0
    return folder / "run"


@pytest.fixture
def mine(run, tmp_path) -> Path:
    """The run in a folder of its own, whose code may be changed."""
    shutil.copytree(run.parent, tmp_path / "mine")
    for file in (tmp_path / "mine" / "run").rglob("*"):
        if file.suffix in (".toml", ".jsonl"):
            file.write_text(file.read_text().replace(str(run.parent), str(tmp_path / "mine")))
    return tmp_path / "mine" / "run"


def test_a_run_keeps_the_names_and_digests_of_its_code(run):
    config = read_toml(run / "config.toml")
    names = [f"{run.parent}/{name}" for name in ("mynet.py:build", "mydata.py:load")]
    assert [config["model"], config["dataset"]] == names
    files = [run.parent / "mynet.py", run.parent / "mydata.py", run.parent / "mylayers.py"]
    names.append(str(files[-1]))
    assert config["code"] == {name: sha256(file.read_bytes()).hexdigest() for name, file in zip(names, files, strict=True)}
    assert rows(run)[0]["config"]["code"] == config["code"]


def test_the_network_of_the_file_is_what_is_trained(run):
    config = make_config(read_toml(run / "config.toml"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plain = load_code(config.model)(4)
    workspace = prepare(config)
    close_workspaces()
    assert [p.shape for p in workspace.model.parameters()] == [p.shape for p in plain.parameters()]
    assert workspace.experiment.classes == ("0", "1", "2", "3")
    assert len(workspace.experiment.test) == 40


def test_a_run_of_code_is_gone_on_with_only_where_that_is_said(mine, capsys):
    before = timeless(mine)
    error = refused(capsys, ["--resume", str(mine)], mine)
    assert "mynet.py:build" in error
    assert "--own-code" in error
    assert main(["--resume", str(mine), "--own-code"]) == 0
    assert timeless(mine) == before
    assert "--own-code" in refused(capsys, ["--config", str(mine / "config.toml")], mine.parent / "new")


def test_another_file_of_the_same_name_is_refused(mine, capsys):
    (mine.parent / "mynet.py").write_text(OTHER)
    assert "mynet.py:build has changed" in refused(capsys, ["--resume", str(mine), "--own-code"], mine)
    names = ["--model", f"{mine.parent}/mynet.py:build", "--dataset", f"{mine.parent}/mydata.py:load"]
    assert "mynet.py:build has changed" in refused(capsys, [*names, *flags(FLEET)], mine)
    (mine.parent / "mynet.py").unlink()
    assert "there is no file" in refused(capsys, ["--resume", str(mine), "--own-code"], mine)


def test_another_file_that_the_code_imports_is_refused(mine, capsys):
    layers = mine.parent / "mylayers.py"
    layers.write_text(LAYERS.replace("return", "return nn.Tanh() or"))
    assert "mylayers.py has changed" in refused(capsys, ["--resume", str(mine), "--own-code"], mine)
    names = ["--model", f"{mine.parent}/mynet.py:build", "--dataset", f"{mine.parent}/mydata.py:load"]
    assert "mylayers.py has changed" in refused(capsys, [*names, *flags(FLEET)], mine)
    layers.unlink()
    assert "mylayers.py: there is no file" in refused(capsys, ["--resume", str(mine), "--own-code"], mine)


def test_a_run_from_before_imports_were_kept_goes_on(mine):
    layers, before = str(mine.parent / "mylayers.py"), timeless(mine)
    for file in (mine / "config.toml", mine / "records.jsonl"):
        text = re.sub(rf',? *"{re.escape(layers)}"(: | = )"[0-9a-f]+"', "", file.read_text())
        file.write_text(text)
    assert "mylayers" not in (mine / "config.toml").read_text() + (mine / "records.jsonl").read_text()
    assert main(["--resume", str(mine), "--own-code"]) == 0
    assert len(timeless(mine)) == len(before)
    names = ["--model", f"{mine.parent}/mynet.py:build", "--dataset", f"{mine.parent}/mydata.py:load"]
    assert main([*names, *flags({**FLEET, "method": ["quantize"], "rounds": 2}), "--out", str(mine)]) == 0
    assert layers in read_toml(mine / "config.toml")["code"]


def test_a_config_without_digests_runs_nothing(mine, capsys):
    file = mine / "config.toml"
    file.write_text(file.read_text().partition("[code]")[0])
    assert "--own-code" in refused(capsys, ["--resume", str(mine)], mine)
    assert "without the digest of its file" in refused(capsys, ["--resume", str(mine), "--own-code"], mine)


def test_the_config_of_a_run_is_none_of_ones_own_without_its_digests_either(mine, capsys):
    file, new = mine / "config.toml", mine.parent / "new"
    file.write_text(file.read_text().partition("[code]")[0])
    assert "--own-code" in refused(capsys, ["--config", str(file)], new)
    assert "without the digest" in refused(capsys, ["--config", str(file), "--own-code"], new)
    # Anywhere else it is a file of the person who names it, and what runs is said.
    shutil.copy(file, mine.parent / "mine.toml")
    assert main(["--config", str(mine.parent / "mine.toml"), "--clients", "2", "--rounds", "0", "--out", str(new)]) == 0
    assert "mine.toml names code of its own, which runs: " in capsys.readouterr().err


def test_a_table_of_digests_alone_runs_nothing(mine, capsys, tmp_path):
    """A run of networks of fedact's own whose config.toml brings code along that nothing names."""
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nx = 1\n")
    text = f"{tmp_path}/evil.py:x"
    file = mine / "config.toml"
    content = file.read_text().partition("[code]")[0].replace(f'"{mine.parent}/mynet.py:build"', '"resnet18"')
    content = content.replace(f'"{mine.parent}/mydata.py:load"', '"digits"')
    file.write_text(f'{content}[code]\n"{text}" = "{code_digest(text)}"\n')
    assert "evil.py:x: add --own-code" in refused(capsys, ["--resume", str(mine)], mine)
    assert "evil.py:x: add --own-code" in refused(capsys, ["--config", str(file)], tmp_path / "new")
    assert not (tmp_path / "ran").exists()


def test_comparing_runs_runs_no_code(mine, tmp_path, capsys):
    (mine.parent / "mynet.py").write_text("raise AssertionError('it ran')")
    (mine.parent / "mydata.py").unlink()
    assert compare.main([str(mine), "--out", str(tmp_path / "comparison")]) == 0
    assert len(fedact.load_run(mine).rounds) == 6
    assert "exact" in capsys.readouterr().out


def test_methods_are_added_to_a_run_of_code(mine):
    names = ["--model", f"{mine.parent}/mynet.py:build", "--dataset", f"{mine.parent}/mydata.py:load"]
    assert main([*names, *flags({**FLEET, "method": ["quantize"]}), "--out", str(mine)]) == 0
    assert {row["method"] for row in rows(mine) if row["kind"] == "round"} == {"exact", "hosvd", "quantize"}


@pytest.mark.slow
def test_workers_run_the_same_code(run, tmp_path):
    names = ["--model", f"{run.parent}/mynet.py:build", "--dataset", f"{run.parent}/mydata.py:load"]
    assert main([*names, *flags(FLEET), "--out", str(tmp_path / "two"), "--workers", "2"]) == 0
    assert timeless(tmp_path / "two") == timeless(run)


def built(tmp_path, source: str) -> str:
    (tmp_path / "bad.py").write_text(f"import torch\nfrom torch import nn\nimport numpy as np\n{source}\n")
    return f"{tmp_path}/bad.py"


LINEAR = "nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, {}))"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("def build(classes): return 3", "returns a int: it is a function from a number of classes"),
        ("def build(classes): pass", "returns None"),
        ("def build(): return nn.Linear(3, 3)", r"takes (): it is called with the number of classes"),
        ("def build(classes, depth): pass", "takes (classes, depth)"),
        ("build = 4", "is a int: it must be a function"),
        ("def build(classes): raise ValueError('so\\nnot')", "fails for 4 classes: ValueError: so not"),
        ("def build(classes): import sys; sys.exit(1)", "fails for 4 classes: SystemExit: 1"),
        ("def build(classes): return " + LINEAR.format("classes + 1"), "gives (1, 5), not a score for each class: (1, 4)"),
        ("def build(classes): return nn.Sequential(nn.Conv2d(3, 4, 3))", "gives (1, 4, 10, 10), not a score"),
        ("def build(classes): return nn.Sequential(nn.Flatten(), nn.LazyLinear(classes))", "lazy layers (1.weight)"),
        ("def build(classes): return " + LINEAR.format("classes") + ".double()", "a network in torch.float64"),
        ("def build(classes): return " + LINEAR.format("classes").replace("3, 4", "7, 4"), "takes no images of that size"),
        ("def build(classes): return nn.Flatten()", "the model has no head"),
        ("class build(nn.Module):\n def __init__(self, classes):\n  super().__init__()\n  self.a = nn.Linear(432, classes)\n"
         " def forward(self, x): return {'out': self.a(x.flatten(1))}", "it gives dict, not a score for each class"),
        ("def built(classes): pass", "there is no 'build' in"),
        ("def build(classes:", "bad.py:build fails, line 4: SyntaxError"),
    ],
)  # fmt: skip
def test_a_bad_network_is_one_line(source, said, tmp_path, capsys, monkeypatch):
    _, data = own_files(tmp_path)
    text = f"{built(tmp_path, source)}:build"
    settings = {**FLEET, "model": text, "dataset": data, "layers": int("nn.Conv2d" in source)}
    assert said in refused(capsys, flags(settings), tmp_path / "out")
    assert not (tmp_path / "out").exists()


SOURCE = """
from fedact.data import Examples, Source

def load():
    examples = Examples(np.zeros((8, 8, 8, 3), np.uint8), np.arange(8))
    return Source(examples, examples, 4)
"""


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("def load(): return 3", "returns 3: (train, test) is due"),
        ("def load(folder): pass", "needs folder: its parameters may be data_dir, resolution, seed"),
        ("def load(): return open('/no/such')", "fails: FileNotFoundError: "),
        ("load = np.zeros(3)", "is a ndarray: it must be a function"),
        ("def load(): return ((np.full((80, 3, 9), np.nan), np.arange(80) % 4),) * 2", "x_train of"),
        ("def load(): return ((np.zeros((80, 8, 8, 3), np.uint8), np.zeros(79, int)),) * 2", "y_train of"),
        ("def load(): return (np.zeros((80, 8, 8, 3), np.uint8), np.zeros(80, int))", "train of"),
        (
            "def load(): return ((np.random.rand(80, 3, 9), np.arange(80) % 4),) * 2",
            "load returns other examples each time, and workers or a run that goes on call it again",
        ),
        (SOURCE, "a label in train that is not below its 4 classes"),
    ],
)  # fmt: skip
def test_bad_data_is_one_line(source, said, tmp_path, capsys):
    settings = {**FLEET, "model": own_files(tmp_path)[0], "dataset": f"{built(tmp_path, source)}:load"}
    assert said in refused(capsys, flags(settings), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("--model", "mynet.py", "write which of its functions, as in mynet.py:NAME"),
        ("--model", "mynett.py:build", "there is no file"),
        ("--model", "no_such_module:build", "there is no module no_such_module"),
        ("--model", "no.such:build", "there is no module no"),
        ("--dataset", "mydata.py", "write which of its functions"),
        ("--dataset", "no_such_module:load", "there is no module no_such_module"),
        ("--model", "mynet.py:build:size=4", "settings, as 'size=4', are for methods"),
        ("--dataset", "mydata.py:load:size=4", "settings, as 'size=4', are for methods"),
        ("--width", "0.5", "--width is not for --model mynet.py:build"),
        ("--weights", "imagenet", "torchvision has none of"),
        ("--task", "segmentation", "is for --task classification"),
    ],
)
def test_a_bad_name_is_one_line(flag, value, said, tmp_path, capsys, monkeypatch):
    own_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    words = ["--model", "mynet.py:build", "--dataset", "mydata.py:load", *flags(FLEET), flag, value]
    assert said in refused(capsys, words, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_resolution_is_given_where_it_is_named_and_a_network_is_a_copy(tmp_path):
    text = built(tmp_path, "net = nn.Linear(2, 3)\ndef build(classes, resolution=0): return nn.Linear(resolution, classes)")
    config = with_code(make_config({"model": f"{text}:build", "resolution": 20}))
    assert own_network(config, 7).weight.shape == (7, 20)
    config = with_code(make_config({"model": f"{text}:net"}))
    first, second = own_network(config, 3), own_network(config, 3)
    assert torch.equal(first.weight, second.weight)
    assert first.weight.data_ptr() != second.weight.data_ptr()


def test_plan_and_bench_take_a_network_of_ones_own(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FEDACT_CACHE", str(tmp_path / "cache"))
    text, data = own_files(tmp_path)
    common = ["--model", text, "--dataset", data, "--resolution", "12", "--weights", "none", "--batch-size", "4"]
    common += ["--layers", "1", "--method", "exact"]
    assert plan.main([*common, "--budget", "100KB"]) == 0
    assert "mynet.py:build" in capsys.readouterr().out
    assert bench.main([*common, "--steps", "0", "--json", str(tmp_path / "a.json")]) == 0
    assert "mynet.py:build, mydata.py:load at 12 px" in capsys.readouterr().out
    for door in (plan, bench):
        assert door.main(["--model", "mynett.py:build"]) == 2
        assert capsys.readouterr().err.count("\n") == 1


NODE = {"partition-id": 0, "num-partitions": 3}


def test_a_node_runs_no_code_but_its_own(run, tmp_path):
    config = make_config(read_toml(run / "config.toml"))
    sent = config.model_dump_json()
    with pytest.raises(ValueError, match=r"mynet\.py:build: this node runs none but what its --node-config names"):
        device_config(sent, read_node(NODE))
    model, data = own_files(tmp_path)
    own = read_node({**NODE, "own-code": f"{model} {data}"})
    on_device = device_config(sent, own)
    assert (on_device.model, on_device.dataset) == (model, data)
    assert set(on_device.code) == {model, data, f"{tmp_path}/mylayers.py"}
    (tmp_path / "mylayers.py").write_text("")
    with pytest.raises(ValueError, match=r"the run's code imports mylayers\.py: this node's own-code imports no such file"):
        device_config(sent, own)
    (tmp_path / "mynet.py").write_text(OTHER)
    with pytest.raises(ValueError, match="this node runs none but"):
        device_config(sent, own)
    with pytest.raises(ValueError, match=r"key in --node-config"):
        read_node({**NODE, "own_code": model})


def test_a_node_runs_no_method_that_a_plan_names(run):
    plans = json.loads((run / "plans.json").read_text())["exact"]
    plan_of = Plan.from_json(json.dumps(next(iter(plans.values()))).replace('"exact"', '"evil.py:Name"'))
    with pytest.raises(ValueError, match=r"evil\.py:Name: this node runs none"):
        read_node(NODE).check(0, plan_of)


PAGE = (ROOT / "docs" / "own-code.md").read_text(encoding="utf-8")


def test_the_files_of_the_page_run_as_it_says(tmp_path, monkeypatch):
    network, data = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)
    (tmp_path / "mynet.py").write_text(network)
    (tmp_path / "mydata.py").write_text(data)
    monkeypatch.chdir(tmp_path)
    (command,) = re.findall(r"^python -m fedact.simulate (.*)$", PAGE, flags=re.MULTILINE)
    few = ["--resolution", "16", "--weights", "none", "--rounds", "1", "--clients", "3", "--layers", "1", "--lr", "0.1"]
    assert main([*shlex.split(command), *few, "--out", "run"]) == 0
    assert {row["status"] for row in rows(tmp_path / "run") if row["kind"] == "client"} == {"ok"}
