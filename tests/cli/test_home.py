"""``~`` in every path that a user gives, and a machine on which there is no home folder."""

import pytest

from fedact import bench, compare, plan, simulate
from fedact.config.loading import make_config, read_toml
from fedact.config.paths import cache_folder
from tests.support.records import write_run
from tests.support.refusal import quiet_home  # noqa: F401


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.fixture
def no_home(monkeypatch):
    def unknown(uid):
        raise KeyError(uid)

    for name in ("HOME", "FEDACT_CACHE", "FEDACT_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)


def test_every_setting_that_is_a_path_knows_the_home_folder(home, monkeypatch):
    (home / "boards.toml").write_text('[mine]\nmemory = "8KB"\nsource = "me"\n')
    (home / "run.toml").write_text('out = "~/x"\ndata_dir = "~/d"\nweights = "~/w.pth"\ndevices = "~/boards.toml"\n')
    config = make_config({**read_toml("~/run.toml"), "pretrain_from": "~/p.pth", "budget": "mine"})
    assert (config.out, config.data_dir, config.devices) == (home / "x", home / "d", home / "boards.toml")
    assert (config.weights, config.pretrain_from) == (str(home / "w.pth"), str(home / "p.pth"))
    monkeypatch.setenv("FEDACT_CACHE", "~/c")
    assert cache_folder() == home / "c"
    monkeypatch.setenv("FEDACT_DATA", "~/e")
    assert make_config({}).data_path() == home / "e"


def test_every_flag_that_is_a_path_knows_the_home_folder(home):
    for command, flags in ((simulate, ("config", "resume")), (plan, ("json", "figure")), (bench, ("json", "figure"))):
        for flag in flags:
            assert command.parser().settings([f"--{flag}=~/x"])[flag] == home / "x"
    given = compare.parser().settings(["~/a", "~/b", "--out=~/x"])
    assert (given["runs"], given["out"]) == ([home / "a", home / "b"], home / "x")


@pytest.mark.parametrize(
    "arguments",
    [["--out=~nobody-here/x"], ["--data-dir", "~nobody-here"], ["--weights", "~nobody-here/w"], ["--resume=~nobody-here"],
     ["--config", "~nobody-here/c.toml"], ["--devices", "~nobody-here/d.toml"], ["--pretrain-from", "~nobody-here"]],
    ids=lambda words: words[0],
)  # fmt: skip
def test_an_unknown_users_home_is_one_line(arguments, capsys):
    assert simulate.main(arguments) == 2
    error = capsys.readouterr().err
    assert (error.count("\n"), "~nobody-here" in error, "home folder is not known" in error) == (1, True, True)


def test_without_a_home_a_run_names_the_variable_that_helps(no_home, capsys):
    assert simulate.main(["--dataset", "digits", "--weights", "none"]) == 2
    error = capsys.readouterr().err
    assert error == "fedact: there is no home folder for data and caches: let $FEDACT_CACHE name a folder\n"
    assert simulate.main(["--out=~/x"]) == 2


def test_without_a_home_runs_are_compared(no_home, tmp_path, capsys):
    assert compare.main([str(write_run(tmp_path / "run"))]) == 0
