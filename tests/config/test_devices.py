"""Boards by name: the file that ships with fedact, files of one's own, and budgets that name boards."""

import json
import re
import tomllib
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedact.config.budgets import in_bytes, parse_budget
from fedact.config.devices import SHIPPED, read_devices
from fedact.config.loading import make_config
from fedact.simulate import main
from tests.support.runs import TINY, timeless

ROOT = Path(__file__).parents[2]
BOARDS = read_devices()
OWN = '[tiny]\nmemory = "1MB"\nactivations = "30KB"\nsource = "ours"\n[twin]\nmemory = 30_000\nsource = "ours"\n'


@pytest.fixture
def own(tmp_path) -> Path:
    (tmp_path / "boards.toml").write_text(OWN)
    return tmp_path / "boards.toml"


@pytest.mark.parametrize("name", BOARDS)
def test_every_board_that_ships_says_who_gives_its_memory_and_where(name):
    device = BOARDS[name]
    assert 0 < device.activations <= device.memory
    assert re.search(r"\d", device.source.partition("https://")[0])
    assert re.search(r"https://\S+$", device.source)


def test_datasheets_kilobytes_of_sram_are_binary():
    assert BOARDS["stm32f746"].memory == 320 * 1024
    assert BOARDS["esp32-s3"].memory == 512 * 1024
    assert BOARDS["nrf52840"].memory == BOARDS["arduino-nano-33-ble"].memory == 256 * 1024


def test_the_file_is_in_the_package_and_beside_the_other_configs():
    assert (ROOT / "configs" / "devices.toml").read_bytes() == SHIPPED.read_bytes()
    packaged = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert str(SHIPPED.relative_to(ROOT / "fedact")) in packaged["fedact"]


def test_a_board_stands_for_its_bytes_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert make_config({"budget": "stm32f746", "clients": 2}).client_budgets() == (327_680, 327_680)
    mix = make_config({"budget": "stm32f746:10, ESP32-S3 : 6 ,4MB:4"})
    assert Counter(mix.client_budgets()) == {327_680: 10, 524_288: 6, 4_000_000: 4}


def test_only_what_may_go_to_activations_is_the_budget(own):
    assert make_config({"devices": own, "budget": "tiny", "clients": 1}).client_budgets() == (30_000,)


@given(st.lists(st.sampled_from([*BOARDS, "512KB", "7", "none", "1.5MiB"]), min_size=1, max_size=6))
def test_names_in_a_mix_are_the_same_mix_in_bytes(words):
    text = ",".join(f"{word}:{share}" for share, word in enumerate(words, start=1))
    spelled = ",".join(f"{BOARDS[w].activations if w in BOARDS else w}:{s}" for s, w in enumerate(words, start=1))
    assert parse_budget(text) == parse_budget(in_bytes(text)) == parse_budget(spelled)


@given(st.text("0159KBMi:,.- ", max_size=20))
def test_a_budget_without_names_stays_as_it_is_written(text):
    assert in_bytes("1" + text.replace(",", ",1")) == "1" + text.replace(",", ",1")


@pytest.mark.parametrize(
    ("budget", "near"), [("esp32-s4", "esp32-s3"), ("4MB:1,rp2350b:2", "rp2350"), ("STM32F764", "stm32f746")]
)
def test_a_wrong_name_is_answered_with_the_nearest(budget, near, capsys, tmp_path):
    assert main(["--budget", budget, "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert f"did you mean {near!r}?" in said
    assert "a size such as 512KB" in said
    assert said.count("\n") == 1


BROKEN = [
    ("[a]\nsource = 'x'", "[a] memory is missing"),
    ("[a]\nmemory = '5XB'\nsource = 'x'", "[a] memory is '5XB'"),
    ("[a]\nmemory = 0\nsource = 'x'", "[a] memory is 0"),
    ("[a]\nmemory = true\nsource = 'x'", "[a] memory is True"),
    ("[a]\nmemory = '5KB'", "[a] source is missing"),
    ("[a]\nmemory = '5KB'\nsource = ' '", "[a] source is missing"),
    ("[a]\nmemory = '5KB'\nsource = 3", "[a] source is missing"),
    ("[a]\nmemory = '5KB'\nsource = 'x'\nactivations = '6KB'", "[a] activations is 6,000"),
    ("[a]\nmemory = '5KB'\nsource = 'x'\nactivation = '4KB'", "did you mean 'activations'"),
    ("a = 3", "[a] is no table"),
    ("[4MB]\nmemory = '5KB'\nsource = 'x'", "[4MB] is no name"),
    ("[none]\nmemory = '5KB'\nsource = 'x'", "[none] is no name"),
    ("[a", "not TOML"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "said"), BROKEN, ids=lambda value: value[:40])
@pytest.mark.parametrize("more", [[], ["--list"]], ids=["run", "list"])
def test_a_broken_file_is_one_line_that_names_it_and_the_key(text, said, more, capsys, tmp_path):
    (tmp_path / "boards.toml").write_text(text)
    errors = refused(tmp_path / "boards.toml", more, capsys)
    assert said in errors


@pytest.mark.parametrize("more", [[], ["--list"]], ids=["run", "list"])
def test_a_missing_file_is_named(more, capsys, tmp_path):
    assert "No such file" in refused(tmp_path / "gone.toml", more, capsys)


def refused(file: Path, more: list[str], capsys) -> str:
    assert main(["--devices", str(file), *more, "--out", str(file.with_name("run"))]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith(f"fedact: --devices {file}")
    assert errors.count("\n") == 1
    return errors


def test_the_list_shows_the_boards_of_either_file(capsys, own, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["--list"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown and f"{device.memory:,}" in shown for name, device in BOARDS.items())
    assert "STMicroelectronics" in shown
    assert main(["--list", "--devices", str(own)]) == 0
    shown = capsys.readouterr().out
    assert "1,000,000" in shown
    assert "stm32f746" not in shown


@pytest.mark.parametrize("seeds", ["1", "2"])
def test_a_run_repeats_when_its_file_of_boards_is_gone(own, tmp_path, seeds):
    small = ["--clients", "3", "--rounds", "1", "--method", "exact", "--layers", "1", "--seeds", seeds]
    mix = ["--devices", str(own), "--budget", "tiny:1,twin:1,100KB:1"]
    assert main([*TINY, *small, *mix, "--out", str(tmp_path / "run")]) == 0
    own.unlink()
    first = tmp_path / "run" if seeds == "1" else tmp_path / "run" / "seed-0"
    header = json.loads((first / "records.jsonl").read_text().splitlines()[0])
    # Two boards of the same memory share a plan.
    assert header["budgets"] == {"30000": 2, "100000": 1}
    assert set(json.loads((first / "plans.json").read_text())["exact"]) == {"30000", "100000"}
    written = tomllib.loads((tmp_path / "run" / "config.toml").read_text())
    assert written["budget"] == "30000:1,30000:1,100KB:1"
    assert "devices" not in written
    assert main(["--resume", str(tmp_path / "run")]) == 0
    again = ["--config", str(tmp_path / "run" / "config.toml"), "--seeds", "1", "--out", str(tmp_path / "again")]
    assert main(again) == 0
    assert timeless(tmp_path / "again") == timeless(first)
