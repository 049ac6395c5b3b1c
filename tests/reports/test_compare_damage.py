"""Comparisons of what no run of ours would have written: never a traceback, and what can be shown is."""

import csv
import json
import os
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedact.compare import main
from fedact.reports.comparison import figures as compare_plots
from fedact.reports.comparison.cases import compare_runs
from fedact.reports.safe_text import LABEL_LETTERS, escaped, figure_label, wrapped
from fedact.storage.run_folder import RunFolder
from tests.support.records import CONFIG, write_run


def compared(capsys, *arguments) -> tuple[int, str, str]:
    code = main([str(each) for each in arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


def table(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((out / "comparison.csv").read_text().splitlines()))


HOSTILE = {
    "an unknown closing tag": "[/bold]x",
    "a color": "[red]x",
    "an emoji's name": ":smile:",
    "a broken formula": r"$\notacommand{$x",
    "a formula": "$x^2$",
    "a hidden name": "_x",
    "control characters": "\x1b[31m\x07\r\0x",
    "a change of direction": "\u202ex",
}


@pytest.mark.parametrize("method", HOSTILE.values(), ids=HOSTILE)
def test_a_method_is_shown_letter_by_letter_whatever_it_is_called(tmp_path, capsys, method):
    run = write_run(tmp_path / "run", methods=(method, "vanilla"))
    code, out, _ = compared(capsys, run, "--out", tmp_path / "out")
    assert code == 0
    assert escaped(method) in out
    assert [row["case"] for row in table(tmp_path / "out")] == [escaped(method), "vanilla"]
    (legend,) = compare_plots.accuracy_by_round(compare_runs([run]).cases).legends
    assert [text.get_text() for text in legend.get_texts()] == [figure_label(method), "vanilla"]


@given(st.text())
def test_what_is_visible_can_be_printed_and_stays_what_it_is(text):
    shown = escaped(text)
    assert shown.isprintable()
    assert escaped(shown) == shown
    assert shown == text or not text.isprintable()
    shown.encode()


@given(st.text(min_size=1, max_size=400))
def test_what_is_drawn_is_short_and_no_formula(text):
    name = figure_label(text)
    assert not name.startswith("_")
    assert name.replace(r"\$", "").count("$") == 0
    assert len(name.replace(r"\$", "$")) <= LABEL_LETTERS + len(" ...")


@given(st.lists(st.sampled_from(["hosvd", "bits=8", "variance=0.85", "x" * 60, "(rounds"]), min_size=1))
def test_a_folded_name_loses_and_gains_no_letter_and_keeps_its_settings_whole(words):
    lines = wrapped(",".join(words), 40).split("\n")
    assert "".join(lines) == ",".join(words)
    assert all(len(line) <= 40 for line in lines)
    if "x" * 60 not in words:
        assert all(line.endswith(",") for line in lines[:-1])


WRONG = {
    "scope": ({"config": {"scope": "nonsense"}}, "config.scope"),
    "rounds": ({"config": {"rounds": "3"}}, "config.rounds"),
    "seeds": ({"config": {"seeds": None}}, "config.seeds"),
    "methods": ({"config": {"method": [["vanilla"]]}}, "config.method.0"),
    "versions": ({"header": {"versions": [1, 2]}}, "versions"),
    "command": ({"header": {"command": ["rm"]}}, "command"),
}


@pytest.mark.parametrize(("change", "words"), WRONG.values(), ids=WRONG)
def test_a_header_of_another_shape_is_named_with_what_is_wrong(tmp_path, capsys, change, words):
    good, bad = write_run(tmp_path / "good"), write_run(tmp_path / "bad", **change)
    code, _, err = compared(capsys, bad, good, "--out", tmp_path / "out")
    assert code == 2
    assert f"{bad}/records.jsonl, line 1: {words}: " in err
    assert [row["run"] for row in table(tmp_path / "out")] == [str(good)]


def test_a_header_may_say_less(tmp_path, capsys):
    run = write_run(tmp_path / "run")
    text = (run / "records.jsonl").read_text()
    (run / "records.jsonl").write_text(text.replace(json.dumps({**CONFIG}), "{}"))
    assert compared(capsys, run, "--out", tmp_path / "out")[0] == 0


def test_a_copy_of_a_seed_does_not_count_twice(tmp_path, capsys):
    write_run(tmp_path / "run/seed-0", config={"seeds": 2})
    write_run(tmp_path / "run/seed-1", config={"seeds": 2})
    code, _, err = compared(capsys, tmp_path / "run", "--out", tmp_path / "out")
    assert (code, "seed-1/records.jsonl holds seed 0 once more" in err) == (2, True)
    assert [(row["seeds"], row["client_rows"]) for row in table(tmp_path / "out")] == [("1", "4 ok")]


def test_a_seed_of_another_data_set_is_not_averaged_with_the_first(tmp_path, capsys):
    write_run(tmp_path / "run/seed-0")
    write_run(tmp_path / "run/seed-1", seed=1, config={"dataset": "cifar10"})
    code, _, err = compared(capsys, tmp_path / "run", "--out", tmp_path / "out")
    assert (code, "its dataset is cifar10, not digits" in err) == (2, True)
    assert [row["seeds"] for row in table(tmp_path / "out")] == ["1"]


def test_runs_of_one_name_and_settings_are_told_apart_by_their_paths(tmp_path):
    runs = [write_run(tmp_path / folder / "same") for folder in ("a", "b")]
    assert [case.label for case in compare_runs(runs).cases] == [f"vanilla ({run})" for run in runs]


def test_a_run_whose_model_was_never_evaluated_is_shown_without_accuracies(tmp_path, capsys):
    code, _, _ = compared(capsys, write_run(tmp_path / "run", accuracy=None), "--out", tmp_path / "out")
    assert code == 0
    assert [(row["accuracy"], row["saved_bytes"]) for row in table(tmp_path / "out")] == [("", "1002")]


def test_nobody_waits_for_a_pipe_in_a_plans_place(tmp_path, capsys):
    run = write_run(tmp_path / "run")
    os.mkfifo(run / "plans.json")
    code, out, _ = compared(capsys, run, "--out", tmp_path / "out")
    assert (code, "plans.json is no file" in out) == (0, True)


def test_a_name_too_long_for_a_disk_is_one_line(tmp_path, capsys):
    run, endless = write_run(tmp_path / "run"), "x" * 300
    code, _, err = compared(capsys, run, tmp_path / endless, "--out", tmp_path / "out")
    assert (code, "File name too long" in err, len(err.splitlines())) == (2, True, 1)
    code, _, err = compared(capsys, run, "--out", tmp_path / endless)
    assert (code, "File name too long" in err, len(err.splitlines())) == (2, True, 1)


def test_folders_with_names_it_cannot_print_are_compared(tmp_path, capsys):
    runs = [write_run(tmp_path / os.fsdecode(name)) for name in (b"\xff", "名前 \x1b[2J".encode(), b"[red]")]
    code, out, _ = compared(capsys, *runs, "--out", tmp_path / "out")
    assert code == 0
    assert "\x1b" not in out
    assert r"\udcff" in (tmp_path / "out/report.html").read_text()


def test_an_output_that_knows_ascii_alone_shows_the_rest_as_question_marks(tmp_path, monkeypatch):
    for seed in (0, 1):
        write_run(tmp_path / f"run/seed-{seed}", seed=seed, config={"seeds": 2})
    out = TextIOWrapper(BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", out)
    assert main([str(tmp_path / "run"), "--out", str(tmp_path / "out")]) == 0
    out.flush()
    assert b"2.0 ? 0.0 %" in out.buffer.getvalue()


def test_a_folder_in_a_reports_place_is_said_before_anything_is_written(tmp_path, capsys):
    (tmp_path / "out/report.html").mkdir(parents=True)
    code, _, err = compared(capsys, write_run(tmp_path / "run"), "--out", tmp_path / "out")
    assert (code, "report.html is a folder" in err) == (2, True)
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["report.html"]


def test_plans_beside_a_record_are_not_a_pipe_for_a_resumed_run_either(tmp_path):
    (tmp_path / "plans.json").mkdir()
    with pytest.raises(ValueError, match="is no file"):
        RunFolder(tmp_path).read_plans()


@pytest.mark.parametrize("content", ["seeds = 3", None, "= =", 'seeds = "x"', b"\xff"])
def test_seeds_that_have_not_begun_are_said_where_the_config_tells_of_them(tmp_path, capsys, content):
    write_run(tmp_path / "run/seed-0")
    if content is not None:
        (tmp_path / "run/config.toml").write_bytes(content if isinstance(content, bytes) else content.encode())
    code, out, _ = compared(capsys, tmp_path / "run", "--out", tmp_path / "out")
    assert (code, "1 of 3 seeds have begun" in out) == (0, content == "seeds = 3")


def test_one_seed_compared_alone_is_whole(tmp_path, capsys):
    write_run(tmp_path / "run/seed-0")
    (tmp_path / "run/config.toml").write_text("seeds = 3")
    _, out, _ = compared(capsys, tmp_path / "run/seed-0", "--out", tmp_path / "out")
    assert "not finished" not in out
