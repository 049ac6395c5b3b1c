"""Who holds what, kept beside a run: written as it is counted, read back or refused."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given

from fedact.config.errors import ConfigError
from fedact.data.partition import partition_examples
from fedact.federation import server
from fedact.reports.run import figures as plots
from fedact.simulate import main
from fedact.storage.partition_csv import partition_csv, read_partition
from fedact.storage.run import load_run
from fedact.storage.run_folder import RunFolder
from tests.support.dealing import cases
from tests.support.runs import SMALL
from tests.support.stopping import stopping_after

QUICK = [*SMALL, "--layers", "0", "--rounds", "0", "--method", "exact"]


@given(case=cases())
def test_what_is_written_is_what_a_counter_counts_and_is_read_back(case, tmp_path_factory):
    parts = partition_examples(case.rule, case.labels, case.clients, case.random())
    file = tmp_path_factory.getbasetemp() / "partition.csv"
    file.write_text(partition_csv(parts.owners(), case.labels[parts.order]))
    counted = [
        (client, label, count)
        for client, part in enumerate(parts)
        for label, count in sorted(Counter(case.labels[part].tolist()).items())
    ]
    assert [tuple(row) for row in read_partition(file).to_numpy().tolist()] == counted


def test_a_known_table():
    assert partition_csv(np.array([1, 0, 1, 1]), np.array([7, 3, 2, 7])) == "client,label,examples\n0,3,1\n1,2,1\n1,7,2\n"


GOOD = "client,label,examples\n0,0,3\n0,2,1\n1,1,4\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "line 1"),
        (GOOD.replace("label", "class"), "line 1"),
        (GOOD + "1,1,4\n", "line 5"),
        (GOOD + "3,1,4\n", "line 5"),
        (GOOD + "2,1,0\n", "line 5"),
        (GOOD + "2,1,4", "line 5"),
        (GOOD + "2,1\n", "line 5"),
        (GOOD + "2,1,4,4\n", "line 5"),
        (GOOD + "2,01,4\n", "line 5"),
        (GOOD + f"2,1,{10**18}\n", "line 5"),
        (GOOD + "2,-1,4\n", "line 5"),
        (GOOD + "\n", "line 5"),
        (GOOD.replace("0,2,1", "0,0,1"), "line 3"),
        (GOOD.replace("0,0,3", "1,0,3"), "line 2"),
    ],
)
def test_what_no_run_could_have_written_is_refused_with_its_line(text, said, tmp_path):
    (tmp_path / "partition.csv").write_bytes(text.encode())
    with pytest.raises(ConfigError, match=rf"partition\.csv, {said}:"):
        read_partition(tmp_path / "partition.csv")


def test_a_run_without_the_file_holds_nothing_that_is_known(tmp_path):
    assert read_partition(tmp_path / "partition.csv").empty
    (tmp_path / "partition.csv").mkdir()
    with pytest.raises(ConfigError, match="cannot be read"):
        read_partition(tmp_path / "partition.csv")


def test_a_run_keeps_what_its_clients_hold(tmp_path):
    assert main([*QUICK, "--out", str(tmp_path / "run")]) == 0
    run = load_run(tmp_path / "run")
    assert list(run.partition.columns) == ["seed", "client", "label", "examples"]
    by_client = run.partition.groupby("client")["examples"].sum()
    assert by_client.index.tolist() == list(range(run.config["clients"]))
    assert by_client.sum() == 120 - 16


def test_each_seed_keeps_its_own(tmp_path):
    assert main([*QUICK, "--seeds", "2", "--seed", "5", "--out", str(tmp_path / "run")]) == 0
    partition = load_run(tmp_path / "run").partition
    texts = [RunFolder(tmp_path / "run" / f"seed-{seed}").partition.read_text() for seed in (5, 6)]
    for seed, text in zip((5, 6), texts, strict=True):
        own = partition[partition["seed"] == seed][["client", "label", "examples"]]
        assert own.to_csv(index=False) == text
    assert texts[0] != texts[1]


@pytest.fixture
def begun(tmp_path, monkeypatch) -> RunFolder:
    """A run that was stopped after the first of its two rounds."""
    command = [*SMALL, "--layers", "0", "--rounds", "2", "--method", "exact", "--out", str(tmp_path / "run")]
    with monkeypatch.context() as patch:
        patch.setattr(server.PartialFedAvg, "finish_round", stopping_after(1))
        assert main(command) == 130
    return RunFolder(tmp_path / "run")


def test_a_run_that_was_dealt_otherwise_is_not_gone_on_with(begun, capsys):
    before = begun.records.read_bytes()
    lines = begun.partition.read_text().splitlines()
    client, label, examples = lines[1].split(",")
    begun.partition.write_text("\n".join([lines[0], f"{client},{label},{int(examples) + 1}", *lines[2:]]) + "\n")
    capsys.readouterr()
    assert main(["--resume", str(begun.path)]) == 2
    errors = capsys.readouterr().err
    assert "partition.csv is not what" in errors
    assert errors.count("\n") == 1
    assert begun.records.read_bytes() == before


def test_a_run_from_before_it_was_kept_goes_on_and_keeps_it(begun):
    text = begun.partition.read_text()
    begun.partition.unlink()
    assert main(["--resume", str(begun.path)]) == 0
    assert begun.partition.read_text() == text


def test_a_finished_run_from_before_is_left_as_it_is(tmp_path):
    assert main([*QUICK, "--out", str(tmp_path / "run")]) == 0
    for name in ("partition.csv", "partition.png"):
        (tmp_path / "run" / name).unlink()
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()}
    assert main(["--resume", str(tmp_path / "run")]) == 0
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()} == before
    assert "partition" not in plots.figure_files(load_run(tmp_path / "run"), tmp_path)
