"""Files that editors on Windows made, and a checkout there: marks at the beginning, other ends of lines, UTF-16."""

import codecs
import shutil

import pytest

from fedact.config.errors import ConfigError
from fedact.config.loading import read_toml
from fedact.simulate import main
from fedact.storage.run import load_run
from tests.support.refusal import quiet_home  # noqa: F401
from tests.support.runs import ONE

SETTINGS = '# ein Lauf mit "Äpfeln"\nclients = 4\nmodel = "resnet18"\n'
WRITTEN = {
    "a mark": codecs.BOM_UTF8 + SETTINGS.encode(),
    "two characters a line end": SETTINGS.replace("\n", "\r\n").encode(),
    "both": codecs.BOM_UTF8 + SETTINGS.replace("\n", "\r\n").encode(),
    "UTF-16, little end first": codecs.BOM_UTF16_LE + SETTINGS.encode("utf-16-le"),
    "UTF-16, big end first": codecs.BOM_UTF16_BE + SETTINGS.replace("\n", "\r\n").encode("utf-16-be"),
}


@pytest.mark.parametrize("content", WRITTEN.values(), ids=WRITTEN)
def test_a_config_is_read_whatever_editor_wrote_it(content, tmp_path):
    (tmp_path / "run.toml").write_bytes(content)
    assert read_toml(tmp_path / "run.toml") == {"clients": 4, "model": "resnet18"}


@pytest.mark.parametrize("content", [SETTINGS.replace("\n", "\r").encode(), SETTINGS.encode("latin-1"), b"\xff\xfea"])
def test_what_is_no_text_or_of_one_line_alone_is_refused_with_its_name(content, tmp_path):
    (tmp_path / "run.toml").write_bytes(content)
    with pytest.raises(ConfigError, match=r"run\.toml is not TOML"):
        read_toml(tmp_path / "run.toml")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    run = tmp_path_factory.mktemp("finished") / "run"
    assert main([*ONE, "--out", str(run)]) == 0
    return run


@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8], ids=["no mark", "a mark"])
def test_a_run_out_of_a_checkout_on_windows_is_read_and_goes_on(finished, mark, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    for name in ("config.toml", "plans.json", "partition.csv", "records.jsonl"):
        text = (run / name).read_bytes()
        (run / name).write_bytes(mark + text.replace(b"\n", b"\r\n"))
    assert main(["--resume", str(run)]) == 0, capsys.readouterr().err
    then, now = load_run(finished), load_run(run)
    assert then.rounds.equals(now.rounds)
    assert then.partition.equals(now.partition)
    assert main([*ONE, "--rounds", "1", "--method", "vanilla", "--out", str(run)]) == 0
    assert list(load_run(run).rounds["method"].unique()) == ["exact", "vanilla"]


def test_records_with_the_line_ends_of_old_macs_are_refused_and_stay(finished, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    records = run / "records.jsonl"
    records.write_bytes(records.read_bytes().replace(b"\n", b"\r"))
    before = contents_of(run)
    assert main(["--resume", str(run)]) == 2
    error = capsys.readouterr().err
    assert error == f"fedact: {records} ends its lines in \\r alone: they must end in \\n\n"
    assert contents_of(run) == before


def contents_of(run):
    return {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
