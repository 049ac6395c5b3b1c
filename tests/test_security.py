"""No code comes out of a file, and nothing is written beside the run."""

import ast
import pickle
import shutil
from pathlib import Path

import pytest
import torch

import fedact
from fedact.config.errors import ConfigError
from fedact.models import weights
from fedact.simulate import main
from tests.support.refusal import quiet_home, refused  # noqa: F401
from tests.support.runs import ONE

PACKAGE = Path(fedact.__file__).parent
NEVER = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml"}
SAFELY = {"torch.load": "weights_only", "np.load": "allow_pickle", "weights.get_state_dict": "weights_only"}
"""What can run code from a file, with the argument that keeps it from it."""
SAFE = {"weights_only": True, "allow_pickle": False}


def nodes(kind):
    for file in sorted(PACKAGE.rglob("*.py")):
        yield from ((file, node) for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, kind))


def test_no_module_that_unpickles_is_imported():
    named = [(file, alias.name) for file, node in nodes(ast.Import) for alias in node.names]
    named += [(file, str(node.module)) for file, node in nodes(ast.ImportFrom)]
    assert [(file.name, name) for file, name in named if name.split(".")[0] in NEVER] == [("handover.py", "cloudpickle")]


def test_what_is_handed_to_own_processes_is_only_written_there():
    calls = {ast.unparse(call.func) for _, call in nodes(ast.Call)}
    assert {name for name in calls if name.startswith("cloudpickle.")} == {"cloudpickle.dumps"}


def test_every_reader_that_could_run_code_is_told_not_to():
    seen = set()
    for file, call in nodes(ast.Call):
        name = ast.unparse(call.func)
        # What the person at the keyboard named, and nothing else (see tests/cli/test_own_code.py).
        assert name not in ("eval", "exec", "compile") or file == PACKAGE / "config" / "code_loading.py", file
        if name in SAFELY:
            given = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords if keyword.arg in SAFE}
            assert given == {SAFELY[name]: SAFE[SAFELY[name]]}, f"{file.name}: {name}"
            seen.add(name)
    assert seen == set(SAFELY)


class Payload:
    ran = False

    def __reduce__(self):
        return (setattr, (Payload, "ran", True))


@pytest.mark.parametrize("legacy", [False, True])
def test_weights_in_torchs_cache_run_no_code(tmp_path, monkeypatch, legacy):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    place = tmp_path / "checkpoints" / weights.imagenet_weights("mobilenet_v2").url.rsplit("/", 1)[-1]
    place.parent.mkdir()
    torch.save({"a": Payload()}, place, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ConfigError, match="is broken"):
        weights.from_torchvision("mobilenet_v2", None)
    assert not Payload.ran
    # The payload is one: unpickled without care, it runs.
    pickle.loads(pickle.dumps(Payload()))
    assert Payload.ran
    Payload.ran = False


@pytest.fixture(scope="module")
def begun_once(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("begun") / "run"
    assert main([*ONE, "--seeds", "2", "--rounds", "0", "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def begun(begun_once, tmp_path) -> Path:
    return shutil.copytree(begun_once, tmp_path / "run")


@pytest.mark.parametrize(
    "name", ["config.toml", "seed-0", "seed-1/records.jsonl", "seed-1/plans.json", "seed-0/checkpoints"]
)
def test_a_run_with_a_link_in_it_is_not_gone_on_with(begun, tmp_path, capsys, name):
    away = tmp_path / "away"
    shutil.move(begun / name, away)
    (begun / name).symlink_to(away)
    before = sorted(away.rglob("*")), away.is_file() and away.read_bytes()
    assert "is a link" in refused(capsys, ["--resume", str(begun)], begun)
    assert (sorted(away.rglob("*")), away.is_file() and away.read_bytes()) == before


def test_a_run_may_lie_behind_a_link(begun, tmp_path):
    (tmp_path / "shortcut").symlink_to(begun)
    assert main(["--resume", str(tmp_path / "shortcut")]) == 0


def test_nothing_is_written_through_a_link_that_was_put_there_in_advance(tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "records.jsonl").symlink_to(tmp_path / "secret")
    assert main([*ONE, "--out", str(tmp_path / "new")]) == 2
    assert not (tmp_path / "secret").exists()
