"""fedact.run in other processes: workers and Ray get what no file holds, and scripts and notebooks need no care."""

import os
import re
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import fedact
from fedact.config.loading import read_toml
from tests.support.own_network import FEW, Net, build
from tests.support.paths import ROOT
from tests.support.runs import rows, timeless

PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
SCRIPT = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)[-1]
SMALL = """
import numpy as np
from torch import nn
import fedact

class Own(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3, stride=2)
        self.head = nn.Linear(4, classes)

    def forward(self, x):
        return self.head(self.body(x).relu().mean((2, 3)))

def build(classes):
    return Own(classes)

y = np.arange(120) % 4
x = (np.random.default_rng(0).normal(80, 25, (120, 12, 12, 3)) + 30 * y[:, None, None, None]).clip(0, 255).astype(np.uint8)
settings = dict(train=(x[:80], y[:80]), test=(x[80:], y[80:]), clients=3, rounds=1, budget="200KB", method="exact", layers=1)
settings |= dict(resolution=12, lr=0.1, weights="none", batch_size=8, workers=2)
"""


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """A run in one process."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    fedact.run(build, out=folder, **FEW)
    return folder


@pytest.mark.slow
def test_workers_make_the_rows_of_one_process(alone, tmp_path):
    fedact.run(lambda classes: Net(classes), out=tmp_path / "run", workers=2, **FEW)
    assert timeless(tmp_path / "run") == timeless(alone)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed: pip install -e '.[ray]'")
def test_ray_makes_the_rows_of_one_process(alone, tmp_path):
    fedact.run(lambda classes: Net(classes), out=tmp_path / "run", runtime="ray", **FEW)
    assert timeless(tmp_path / "run") == timeless(alone)


def started(text: str, folder: Path) -> "subprocess.Popen[str]":
    (folder / "script.py").write_text(text)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "agg", "FEDACT_CACHE": str(folder / "cache")}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-u", "script.py"], cwd=folder, env=environment, text=True, **pipes)


def run_script(text: str, folder: Path, code: int = 0) -> list[str]:
    """Run a script, and return what it wrote to stderr in lines."""
    process = started(text, folder)
    errors = process.communicate(timeout=500)[1]
    assert process.returncode == code, errors
    return errors.splitlines()


@pytest.mark.exhaustive
def test_a_script_needs_a_guard_for_its_file_to_be_named_alone(tmp_path):
    guarded = 'if __name__ == "__main__":\n    fedact.run(build, out="guarded", **settings)\n'
    plain = 'assert fedact.run(build, out="plain", **settings).config["workers"] == 2\n'
    run_script(SMALL + plain, tmp_path)
    run_script(SMALL + guarded, tmp_path)
    assert timeless(tmp_path / "plain") == timeless(tmp_path / "guarded")
    found = {name: read_toml(tmp_path / name / "config.toml") for name in ("plain", "guarded")}
    assert found["guarded"]["model"] == f"{tmp_path}/script.py:build"
    assert found["plain"]["model"].endswith(":build")
    assert ".py" not in found["plain"]["model"]


@pytest.mark.exhaustive
def test_a_script_without_a_guard_is_told_so_when_its_file_is_the_network(tmp_path):
    errors = run_script(SMALL + 'fedact.run("script.py:build", out="run", **settings)\n', tmp_path, code=1)
    assert 'calls fedact.run as it is imported: put that under if __name__ == "__main__":' in errors[-1]
    assert not (tmp_path / "run").exists()


@pytest.mark.exhaustive
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_leaves_a_run_that_goes_on(tmp_path):
    text = SMALL.replace("rounds=1", "rounds=200") + 'fedact.run(build, out="run", **settings)\n'
    process = started(text, tmp_path)
    assert process.stdout is not None
    while "round 3/" not in (line := process.stdout.readline()):
        assert line
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=100)
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert f"fedact: interrupted; call fedact.run with out='{tmp_path / 'run'}' again to go on" in errors
    before = rows(tmp_path / "run")
    assert 3 <= before[-1]["round"] < 200
    again = run_script(text.replace("rounds=200", "rounds=200, seed=1"), tmp_path, code=1)
    assert "holds a run with seed 0, not 1" in again[-1]


@pytest.mark.slow
def test_a_notebook_shows_plain_lines_and_its_classes_reach_workers(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    cells = [SMALL, 'run = fedact.run(build, out="run", **settings)', "print(type(run.model()).__name__)"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in cells])
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute(cwd=str(tmp_path))
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert {output["output_type"] for output in outputs} == {"stream"}
    lines = "".join(output["text"] for output in outputs if output["name"] == "stdout").splitlines()
    assert [line for line in lines if line.startswith("exact  round 1/1  accuracy")]
    assert lines[-1] == "Own"


@pytest.mark.slow
def test_the_script_of_the_page_runs_as_a_newcomer_runs_it(tmp_path):
    assert len(SCRIPT.splitlines()) <= 40
    assert "workers=2" in SCRIPT
    run_script(SCRIPT.replace("rounds=5", "rounds=2"), tmp_path)
    run = fedact.load_run(tmp_path / "runs" / "moves")
    assert set(run.rounds["method"]) == {"exact", "hosvd"}
    assert run.rounds["accuracy"].max() > 0.8
    assert set(run.clients["status"]) == {"ok"}
    assert (tmp_path / "moves.png").stat().st_size > 5_000


@pytest.mark.exhaustive
@pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed: pip install -e '.[ray]'")
def test_the_script_of_the_page_runs_on_ray(tmp_path):
    run_script(SCRIPT.replace("rounds=5", "rounds=2"), tmp_path)
    ray = tmp_path / "ray"
    ray.mkdir()
    run_script(SCRIPT.replace("rounds=5", "rounds=2").replace("workers=2", 'runtime="ray"'), ray)
    assert timeless(ray / "runs" / "moves") == timeless(tmp_path / "runs" / "moves")
