"""A place where bad input can do no harm, and what a refusal must be."""

from pathlib import Path
from urllib.error import URLError

import pytest

from fedact.models import pretraining
from fedact.simulate import main
from fedact.training.workspace import close_workspaces


@pytest.fixture(autouse=True)
def quiet_home(tmp_path, monkeypatch):
    """No network, no cache of the user's, and nothing that is pretrained before bad input is found."""

    def never(*arguments, **settings):
        raise AssertionError("pretraining came before the error")

    def no_network(*arguments, **settings):
        raise URLError("no network")

    monkeypatch.setenv("FEDACT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("FEDACT_DATA", raising=False)
    monkeypatch.setattr(pretraining, "_train", never)
    monkeypatch.setattr("urllib.request.urlopen", no_network)
    monkeypatch.setattr("torch.hub.urlopen", no_network)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    close_workspaces()
    yield
    close_workspaces()


def refused(capsys, arguments: list[str], out: Path) -> str:
    before = sorted(out.rglob("*")) if out.is_dir() else None
    code = main([*arguments, "--out", str(out)] if "--resume" not in arguments else arguments)
    errors = capsys.readouterr().err
    assert code == 2
    assert errors.startswith("fedact: ")
    assert errors.count("\n") == 1
    assert errors.endswith("\n")
    assert "Traceback" not in errors
    assert (sorted(out.rglob("*")) if out.is_dir() else None) == before
    return errors
