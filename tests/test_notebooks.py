from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from fedact.simulate import main
from tests.support.paths import NOTEBOOKS
from tests.support.records import write_segmentation
from tests.support.runs import BOTH


@pytest.fixture(scope="module")
def users_run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("users") / "run"
    assert main([*BOTH, "--rounds", "1", "--out", str(folder)]) == 0
    return folder


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_top_to_bottom_on_a_users_run(path, users_run, monkeypatch):
    monkeypatch.setenv("FEDACT_RUN", str(users_run))
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute(cwd=str(path.parent))
    kinds = {kind for cell in notebook.cells for output in cell.get("outputs", []) for kind in output.get("data", {})}
    assert {"image/png", "text/html"} <= kinds


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_a_notebook_imports_is_there(path):
    cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    lines = [line for cell in cells for line in cell.splitlines() if line.startswith(("import ", "from "))]
    assert lines
    exec("\n".join(lines), {})


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_outputs(path):
    assert not any(cell.get("outputs") for cell in nbformat.read(path, as_version=4).cells)


def test_a_segmentation_run_is_compared_by_changing_the_path_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDACT_RUN", str(write_segmentation(tmp_path / "run")))
    path = next(path for path in NOTEBOOKS if path.stem == "compare_methods")
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute(cwd=str(path.parent))
    drawn = [
        cell["source"]
        for cell in notebook.cells
        if any("image/png" in output.get("data", {}) for output in cell.get("outputs", []))
    ]
    assert any("class_iou" in source for source in drawn)
    tables = [output["data"].get("text/html", "") for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("test mean IoU (%)" in table for table in tables)
