"""Files that are not what they should be: each is refused in one line, or the run is right; nothing else happens."""

import hashlib
import resource
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import tomli_w
import torch
from safetensors.torch import save_file

import fedact
from fedact import plan, simulate
from fedact.config.errors import ConfigError
from fedact.federation import planning, server
from fedact.models import make_model, pretraining
from tests.support.mutations import MUTATIONS, mutate
from tests.support.refusal import quiet_home  # noqa: F401
from tests.support.runs import CHECKPOINT, ONE, REPLANNED, STATES
from tests.support.stopping import stopping_after

FAST, ALL = 3, 25
"""Cases of each kind."""
SECONDS, WAITING, BYTES = 60, 600, 4 * 10**9
"""What a case may take: computing, in all, and in memory beside what the process has."""


class TooLong(BaseException):
    """Not to be caught as an error of the run's."""


@contextmanager
def bounded() -> Iterator[None]:
    """Let what hangs or takes all memory fail."""

    def stop(*_):
        raise TooLong

    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    handlers = {number: signal.signal(number, stop) for number in (signal.SIGPROF, signal.SIGALRM)}
    memory = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + BYTES, memory[1]))
    # A machine that is busy elsewhere makes nothing hang.
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.alarm(WAITING)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        resource.setrlimit(resource.RLIMIT_AS, memory)


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> Path:
    """Valid files of every kind; a run that stands after the second of its three rounds, and a finished one."""
    folder = tmp_path_factory.mktemp("originals")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "TOLERANCE", 0)
        patch.setattr(server.PartialFedAvg, "finish_round", stopping_after(2))
        assert simulate.main([*REPLANNED, "--out", str(folder / "run")]) == 130
    assert simulate.main([*ONE, "--out", str(folder / "finished")]) == 0
    random = np.random.default_rng(0)
    images = {
        part: random.integers(0, 256, (size, 8, 8, 3)).astype(np.uint8) for part, size in (("train", 120), ("test", 40))
    }
    labels = {f"y_{part}": np.arange(len(found)) % 10 for part, found in images.items()}
    np.savez(folder / "data.npz", **{f"x_{part}": found for part, found in images.items()}, **labels)
    torch.manual_seed(0)
    tensors = make_model("mobilenet_v2", 10, 0.1).state_dict()
    save_file(tensors, folder / "weights.safetensors", {"resolution": "32", "mean": "[0.5, 0.5, 0.5]"})
    torch.save(tensors, folder / "weights.pth")
    boards = {
        "pico": {"memory": "264KB", "source": "a vendor"},
        "big": {"memory": "4MB", "activations": 10**6, "source": "b"},
    }
    (folder / "boards.toml").write_text(tomli_w.dumps(boards))
    shutil.copy(folder / "finished" / "config.toml", folder / "config.toml")
    return folder


IN_THE_RUN = {
    "records": "records.jsonl", "plans": "plans.json", "resumed config": "config.toml", "checkpoint": CHECKPOINT,
    "states": STATES, "partition": "partition.csv",
}  # fmt: skip
FILES = {"config": "config.toml", "devices": "boards.toml", "npz": "data.npz"}
FILES |= {"safetensors": "weights.safetensors", "pth": "weights.pth"}
PLAN = [
    "--width",
    "0.1",
    "--resolution",
    "32",
    "--layers",
    "0",
    "--method",
    "exact",
    "--batch-size",
    "8",
    "--calibration",
    "8",
]


def doors(kind: str, file: Path, out: Path) -> list[tuple[bool, list[str]]]:
    """Return the command lines that read a file of this kind, each with whether it is simulate's."""
    path, to = str(file), ["--out", str(out)]
    if kind in IN_THE_RUN:
        return [(True, ["--resume", str(out)])]
    if kind == "config":
        # What is left of an emptied file is the main job, which is right but takes its time.
        return [(True, ["--config", path, "--rounds", "1", "--local-epochs", "1", *to])]
    if kind == "devices":
        mix = ["--devices", path, "--budget", "pico:1,big:1"]
        return [(True, ["--list", "--devices", path]), (True, [*ONE, *mix, *to])]
    flags = ["--dataset", "npz", "--data-dir", path] if kind == "npz" else ["--dataset", "synthetic", "--weights", path]
    weights = ["--weights", "none"] if kind == "npz" else []
    return [(False, [*PLAN, *weights, *flags]), (True, [*ONE, *flags, *to])]


def snapshot(folder: Path, but: set[Path]) -> dict[Path, str]:
    found = {}
    for path in folder.rglob("*"):
        if not but & {path, *path.parents} and path.is_file():
            found[path] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def check_run(out: Path, code: int) -> None:
    """A run that is right is whole: every round of every method, figures in their range, the contract's files."""
    run = fedact.load_run(out)
    for method, rounds in run.rounds.groupby("method"):
        assert rounds["round"].tolist() == list(range(run.config["rounds"] + 1)), method
    assert set(run.rounds["method"]) == set(run.config["method"])
    for figures in (run.rounds["accuracy"], run.clients["accuracy"]):
        assert figures.dropna().between(0, 1).all()
    assert {"config.toml", "plans.json", "partition.csv", "accuracy.png", "memory.png"} <= {
        path.name for path in out.iterdir()
    }
    failed = run.clients[(run.clients["status"] == "failed") & run.clients["fault"].isna()]
    assert (code == 1) == (len(failed) > 0)
    assert failed["reason"].str.contains("diverged").all()


def check(kind: str, file: Path, out: Path, capsys) -> str:
    """Give the file to its doors; returns what came of it."""
    said = ""
    for simulates, arguments in doors(kind, file, out):
        capsys.readouterr()
        with bounded():
            code = (simulate if simulates else plan).main(arguments)
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err + printed.out
        if code == 2:
            assert printed.err.startswith("fedact: "), printed.err
            assert printed.err.count("\n") == 1, printed.err
            assert len(printed.err) < 5000
            said += printed.err
        else:
            assert code == 0 or (code == 1 and simulates)
            assert printed.out
            if "--list" not in arguments and simulates:
                check_run(out, code)
    return said or "right"


def reads_or_refuses(out: Path) -> None:
    with bounded():
        try:
            said = f"{len(fedact.load_run(out).rounds)} rounds"
        except ConfigError as error:
            said = str(error)
    assert len(said.splitlines()) == 1


@pytest.fixture(autouse=True)
def pretraining_takes_no_time(quiet_home, monkeypatch):  # noqa: F811
    monkeypatch.setattr(pretraining, "_train", lambda *arguments: None)


def mutated(kind: str, number: int, originals: Path, tmp_path: Path, capsys) -> str:
    folder = tmp_path / str(number)
    out, file = folder / "out", folder / "files" / FILES.get(kind, "")
    (folder / "outside").mkdir(parents=True)
    (folder / "outside" / "secret.txt").write_text("years of work")
    if kind in IN_THE_RUN:
        shutil.copytree(originals / "run", out)
        file = out / IN_THE_RUN[kind]
    else:
        (folder / "files").mkdir()
        shutil.copy(originals / FILES[kind], file)
    mutate(kind, number, file, folder / "outside")
    before = snapshot(tmp_path, but={out, tmp_path / "cache"})
    if kind in IN_THE_RUN:
        reads_or_refuses(out)
    said = check(kind, file, out, capsys)
    assert snapshot(tmp_path, but={out, tmp_path / "cache"}) == before
    assert not (folder / "outside" / "new.txt").exists()
    return said


def all_mutated(kind: str, numbers: range, originals: Path, tmp_path: Path, capsys) -> None:
    said = []
    for number in numbers:
        said.append(mutated(kind, number, originals, tmp_path, capsys))
        shutil.rmtree(tmp_path / str(number))
    # A refusal of everything would prove nothing, nor would taking everything.
    assert any(what != "right" for what in said)


@pytest.mark.parametrize("kind", MUTATIONS)
def test_a_few_files_of_each_kind_are_refused_or_right(kind, originals, tmp_path, capsys):
    all_mutated(kind, range(FAST), originals, tmp_path, capsys)


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", MUTATIONS)
def test_many_files_of_each_kind_are_refused_or_right(kind, originals, tmp_path, capsys):
    all_mutated(kind, range(FAST, FAST + ALL), originals, tmp_path, capsys)


@pytest.mark.parametrize("kind", MUTATIONS)
def test_the_originals_are_right(kind, originals, tmp_path, capsys):
    out, file = tmp_path / "out", originals / FILES.get(kind, "")
    if kind in IN_THE_RUN:
        shutil.copytree(originals / "run", out)
    assert check(kind, file, out, capsys) == "right"
