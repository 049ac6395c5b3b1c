"""Comparisons: the figures are those of the records, and what cannot be read is said while the rest is shown."""

import csv
import html
import json
import re
import shutil
import statistics
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

import fedact
from fedact.compare import main
from fedact.reports.comparison import figures as compare_plots
from fedact.reports.comparison.cases import compare_runs
from fedact.reports.comparison.layer_figure import memory_by_layer
from fedact.reports.comparison.statistics import figures_of, target_accuracy
from fedact.reports.style import frontier
from fedact.simulate import main as simulate
from tests.support.runs import SMALL

RUN = [*SMALL, "--layers", "1", "--rounds", "2", "--method", "vanilla", "--method", "hosvd:variance=0.8"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Two seeds of two methods; the same with other layers under a mixed budget; another model."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDACT_CACHE", str(folder / "cache"))
        assert simulate([*RUN, "--budget", "none", "--seeds", "2", "--out", str(folder / "a")]) == 0
        other = [*RUN, "--layers", "2", "--budget", "500KB:1,250KB:1", "--lr", "0.2"]
        assert simulate([*other, "--out", str(folder / "b")]) == 0
    return folder


def table(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((out / "comparison.csv").read_text().splitlines()))


def compared(capsys, *arguments) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main([str(each) for each in arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_figures_are_those_of_the_records(runs, tmp_path, capsys):
    code, out, err = compared(capsys, runs / "a", "--out", tmp_path / "out")
    assert (code, err) == (0, "")
    run = fedact.load_run(runs / "a")
    for row in table(tmp_path / "out"):
        rounds, clients = (frame[frame["method"] == row["method"]] for frame in (run.rounds, run.clients))
        last = [float(accuracy) for accuracy in rounds[rounds["round"] == 2]["accuracy"]]
        assert float(row["accuracy"]) == pytest.approx(statistics.mean(last))
        assert float(row["accuracy_std"]) == pytest.approx(statistics.stdev(last))
        assert int(row["saved_bytes"]) == clients["saved_bytes"].max()
        assert int(row["paper_bytes"]) == clients["paper_bytes"].max()
        assert float(row["upload_bytes"]) == pytest.approx(clients["upload_bytes"].sum() / 2)
        plan = run.plans[row["method"]]["none"]
        assert int(row["vanilla_saved_bytes"]) == plan["vanilla_saved_bytes"]
        assert float(row["times_less_than_vanilla"]) == pytest.approx(plan["vanilla_saved_bytes"] / int(row["saved_bytes"]))
        assert float(row["flops_ratio"]) == pytest.approx(plan["step_flops"] / plan["vanilla_step_flops"])
        assert row["method"] in out
    assert table(tmp_path / "out")[0]["times_less_than_vanilla"] == "1.0"


def test_the_replications_columns_are_over_all_steps(runs, tmp_path, capsys):
    _, out, _ = compared(capsys, runs / "b", "--out", tmp_path / "out", "--replication")
    assert "As the replication reports it" in out.replace("\n", " ")
    clients = fedact.load_run(runs / "b").clients
    for row in table(tmp_path / "out"):
        own = clients[clients["method"] == row["method"]]
        each = [
            (mean, spread)
            for steps, mean, spread in zip(own["steps"], own["paper_bytes_mean"], own["paper_bytes_std"], strict=True)
            for _ in range(int(steps))
        ]
        mean = statistics.mean(mean for mean, _ in each)
        variance = statistics.mean((own - mean) ** 2 + spread**2 for own, spread in each)
        assert float(row["paper_bytes_mean"]) == pytest.approx(mean)
        assert float(row["paper_bytes_std"]) == pytest.approx(variance**0.5, abs=1)
        assert float(row["paper_bytes_an_epoch"]) == pytest.approx(mean * len(each) / len(own))
        assert float(row["seconds_an_epoch"]) == pytest.approx(own["seconds"].mean())


WITHOUT_TORCH = """
import sys
class Refusal:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "flwr"):
            raise ImportError(f"{name} is not needed here")
sys.meta_path.insert(0, Refusal())
from fedact.compare import main
sys.exit(main())
"""


def test_a_comparison_imports_neither_torch_nor_flwr(runs, tmp_path):
    arguments = [str(runs / "a"), str(runs / "b"), "--out", str(tmp_path / "out"), "--replication"]
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *arguments], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert {"report.html", "comparison.csv", "compare-clients.png"} < {path.name for path in (tmp_path / "out").iterdir()}


def test_everything_is_written_where_asked_and_nothing_else_changes(runs, tmp_path, capsys):
    before = {path: path.stat().st_mtime_ns for path in (runs / "a").rglob("*")}
    compared(capsys, runs / "a", runs / "b", "--out", tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "report.html", "comparison.csv", "compare-accuracy-by-round.png", "compare-memory-by-round.png",
        "compare-accuracy-against-memory.png", "compare-clients.png", "compare-memory-by-layer.png",
    }  # fmt: skip
    assert {path: path.stat().st_mtime_ns for path in (runs / "a").rglob("*")} == before


def test_without_out_the_first_run_holds_the_report_and_stays_a_run(runs, tmp_path, capsys):
    shutil.copytree(runs / "b", tmp_path / "b")
    own = (tmp_path / "b/accuracy.png").read_bytes()
    assert compared(capsys, tmp_path / "b")[0] == 0
    assert (tmp_path / "b/report.html").exists()
    assert (tmp_path / "b/accuracy.png").read_bytes() == own
    assert simulate(["--resume", str(tmp_path / "b")]) == 0


def test_runs_with_the_same_method_are_told_apart_by_what_differs(runs):
    labels = [case.label for case in compare_runs([runs / "a", runs / "b"]).cases]
    settings = "(budget none, layers 1, lr 0.1)", "(budget 500KB:1,250KB:1, layers 2, lr 0.2)"
    assert labels == [f"{method} {own}" for own in settings for method in ("vanilla", "hosvd:variance=0.8")]
    assert [case.label for case in compare_runs([runs / "a"]).cases] == ["vanilla", "hosvd:variance=0.8"]


def test_the_same_run_under_two_names_is_told_apart_by_its_folder(runs, tmp_path):
    shutil.copytree(runs / "b", tmp_path / "copy")
    labels = [case.label for case in compare_runs([runs / "b", tmp_path / "copy"]).cases]
    assert labels[0] == "vanilla (b)"
    assert labels[2] == "vanilla (copy)"
    assert len(compare_runs([runs / "b", runs / "b"]).cases) == 2


def test_rounds_to_an_accuracy_is_the_mean_over_seeds_and_none_where_one_never_gets_there(runs):
    case = compare_runs([runs / "a"]).cases[0]
    assert figures_of(case, 0.0)["rounds_to_target"] == 0
    assert figures_of(case, 1.0)["rounds_to_target"] is None
    best = max(case.rounds[case.rounds["round"] == 2].groupby("seed")["accuracy"].mean())
    assert target_accuracy([case]) <= best


@pytest.mark.parametrize(("text", "code"), [("0.5", 0), ("50%", 0), ("high", 2), ("1.5", 2), ("-1", 2), ("nan", 2)])
def test_the_accuracy_asked_for_is_a_share(runs, tmp_path, capsys, text, code):
    found, out, err = compared(capsys, runs / "b", "--out", tmp_path, f"--accuracy={text}")
    assert found == code
    assert "50.0 %" in out if code == 0 else "--accuracy is a share" in err


def truncated(run: Path) -> None:
    """Leave the first method's first round, and half a line."""
    lines = (run / "records.jsonl").read_text().splitlines(keepends=True)
    ends = [number for number, line in enumerate(lines) if json.loads(line)["kind"] == "round"]
    (run / "records.jsonl").write_text("".join(lines[: ends[1] + 1]) + '{"kind": "cli')


def test_a_half_finished_run_is_shown_with_what_it_has(runs, tmp_path, capsys):
    shutil.copytree(runs / "b", tmp_path / "half")
    truncated(tmp_path / "half")
    code, out, _ = compared(capsys, tmp_path / "half", "--out", tmp_path / "out")
    assert code == 0
    assert "half is not finished: vanilla, seed 0, is at round 1 of 2" in out.replace("\n", " ")
    assert "hosvd:variance=0.8, seed 0, has not begun" in out
    assert [row["rounds"] for row in table(tmp_path / "out")] == ["1"]
    assert "is at round 1 of 2" in (tmp_path / "out/report.html").read_text()


def test_a_seed_on_its_way_is_not_averaged_with_finished_ones(runs, tmp_path):
    shutil.copytree(runs / "a", tmp_path / "half")
    truncated(tmp_path / "half/seed-1")
    cases = compare_runs([tmp_path / "half"]).cases
    assert [case.seeds for case in cases] == [[0], [0]]


def broken(run: Path) -> None:
    lines = (run / "records.jsonl").read_text().splitlines(keepends=True)
    (run / "records.jsonl").write_text("".join([*lines[:2], "{}\n", *lines[2:]]))


BAD = {
    "no folder": (shutil.rmtree, "holds no run"),
    "no records": (lambda run: (run / "records.jsonl").unlink(), "there is no records.jsonl"),
    "empty records": (lambda run: (run / "records.jsonl").write_text(""), "holds no finished round"),
    "a broken line": (broken, "line 3, is no record"),
    "another program's": (lambda run: (run / "records.jsonl").write_text('{"event": "x"}\n' * 9), "line 1, is no record"),
    "another schema": (
        lambda run: (run / "records.jsonl").write_text(
            (run / "records.jsonl").read_text().replace('"schema": 2', '"schema": 99')
        ),
        "line 1, is no record",
    ),
    "a picture": (lambda run: (run / "records.jsonl").write_bytes(bytes(range(256)) * 9), "is no record"),
    "no finished round": (
        lambda run: (run / "records.jsonl").write_text((run / "records.jsonl").read_text().splitlines(keepends=True)[0]),
        "holds no finished round",
    ),
    "a folder": (lambda run: ((run / "records.jsonl").unlink(), (run / "records.jsonl").mkdir()), "no records.jsonl"),
}


@pytest.mark.parametrize(("damage", "words"), BAD.values(), ids=BAD)
def test_a_run_that_cannot_be_read_is_named_with_why_and_the_rest_is_shown(runs, tmp_path, capsys, damage, words):
    shutil.copytree(runs / "b", tmp_path / "bad")
    damage(tmp_path / "bad")
    code, out, err = compared(capsys, tmp_path / "bad", runs / "a", "--out", tmp_path / "out")
    assert code == 2
    assert len(err.strip().splitlines()) == 1
    assert str(tmp_path / "bad") in err
    assert words in err
    assert "hosvd:variance=0.8" in out
    assert words in html.unescape((tmp_path / "out/report.html").read_text())
    assert {row["run"] for row in table(tmp_path / "out")} == {str(runs / "a")}
    code, _, err = compared(capsys, tmp_path / "bad", "--out", tmp_path / "none")
    assert code == 2
    assert words in err
    assert not (tmp_path / "none").exists()


def test_a_damaged_seed_leaves_the_others(runs, tmp_path, capsys):
    shutil.copytree(runs / "a", tmp_path / "bad")
    broken(tmp_path / "bad/seed-0")
    code, _, err = compared(capsys, tmp_path / "bad", "--out", tmp_path / "out")
    assert code == 2
    assert "seed-0" in err
    assert [row["seeds"] for row in table(tmp_path / "out")] == ["1", "1"]


@pytest.mark.parametrize("content", [None, "{", "[]", '{"vanilla": {"none": {}}}'])
def test_without_plans_what_they_say_is_missing_and_the_rest_is_shown(runs, tmp_path, capsys, content):
    shutil.copytree(runs / "b", tmp_path / "bad")
    if content is None:
        (tmp_path / "bad/plans.json").unlink()
    else:
        (tmp_path / "bad/plans.json").write_text(content)
    code, out, _ = compared(capsys, tmp_path / "bad", "--out", tmp_path / "out")
    assert code == 0
    assert "what plans say is missing" in out.replace("\n", " ")
    assert [row["step_flops"] for row in table(tmp_path / "out")] == ["", ""]
    assert all(float(row["accuracy"]) >= 0 for row in table(tmp_path / "out"))


def test_rows_of_an_older_version_lack_what_it_did_not_measure(runs, tmp_path, capsys):
    shutil.copytree(runs / "b", tmp_path / "old")
    rows = [json.loads(line) for line in (tmp_path / "old/records.jsonl").read_text().splitlines()]
    new = ("steps", "saved_bytes_mean", "saved_bytes_std", "paper_bytes_mean", "paper_bytes_std", "fault", "traceback")
    older = [{name: value for name, value in row.items() if name not in new} for row in rows]
    (tmp_path / "old/records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in older))
    assert compared(capsys, tmp_path / "old", "--out", tmp_path / "out")[0] == 0


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]


def test_the_report_is_one_file_without_scripts_or_links(runs, tmp_path, capsys):
    compared(capsys, runs / "a", runs / "b", "--out", tmp_path / "out")
    text = (tmp_path / "out/report.html").read_text()
    reader = Reader()
    reader.feed(text)
    assert reader.tags.count("img") == 5
    assert "script" not in reader.tags
    assert "link" not in reader.tags
    assert all(link.startswith("data:image/png;base64,") for link in reader.links)
    assert not re.search(r"https?://", text)
    for words in ("python -m fedact.simulate", str(runs / "b" / "config.toml"), "layers", "torch"):
        assert words in text


def test_what_a_run_says_is_escaped(runs, tmp_path, capsys):
    shutil.copytree(runs / "b", tmp_path / "<b>")
    records = (tmp_path / "<b>/records.jsonl").read_text()
    hostile = records.replace("hosvd:variance=0.8", "<script>alert(1)</script>").replace('"fedact": ', '"<i>": ')
    (tmp_path / "<b>/records.jsonl").write_text(hostile)
    assert compared(capsys, tmp_path / "<b>", "--out", tmp_path / "out")[0] == 0
    reader = Reader()
    reader.feed((tmp_path / "out/report.html").read_text())
    assert not {"script", "i", "b"} & set(reader.tags)
    assert "&lt;script&gt;" in (tmp_path / "out/report.html").read_text()


def test_runs_of_different_things_are_compared_with_a_word_about_it(runs, tmp_path, capsys):
    shutil.copytree(runs / "b", tmp_path / "other")
    text = (tmp_path / "other/records.jsonl").read_text().replace('"resolution": 32', '"resolution": 64')
    (tmp_path / "other/records.jsonl").write_text(text)
    _, out, _ = compared(capsys, runs / "a", tmp_path / "other", "--out", tmp_path / "out")
    assert "These runs differ in resolution" in out
    assert "differ in resolution" in (tmp_path / "out/report.html").read_text()


def test_each_figure_shows_every_case(runs):
    cases = compare_runs([runs / "a", runs / "b"]).cases
    accuracy = compare_plots.accuracy_by_round(cases).axes[0]
    for case, line in zip(cases, accuracy.lines, strict=True):
        mean = case.rounds.groupby("round")["accuracy"].mean() * 100
        assert list(line.get_ydata()) == pytest.approx(list(mean))
    # What is alive comes first.
    for axes, name in zip(compare_plots.memory_by_round(cases).axes, ("peak_bytes", "saved_bytes"), strict=True):
        assert [max(line.get_ydata()) for line in axes.lines] == [case.clients[name].max() for case in cases]
    clients = compare_plots.clients_spread(cases).axes[0]
    names = ["".join(label.get_text().split()) for label in clients.get_yticklabels()]
    assert names == ["".join(case.label.split()) for case in cases]
    layers = memory_by_layer(cases).axes[0]
    assert layers.get_yticklabels()[0].get_text() == "classifier.1"
    for container, case in zip(layers.containers, cases, strict=True):
        plan = max(case.plans.values(), key=lambda plan: plan["layers"])
        assert sum(bar.get_width() for bar in container) == pytest.approx(plan["saved_bytes"] - plan["state_bytes"], abs=2)


def test_the_frontier_is_what_nothing_beats_in_both():
    points = [(10, 50.0), (20, 60.0), (20, 70.0), (30, 65.0), (5, 40.0), (40, 80.0)]
    assert frontier(points, highest=True) == [(5, 40.0), (10, 50.0), (20, 70.0), (40, 80.0)]


def test_an_out_that_is_a_file_is_left_alone(runs, tmp_path, capsys):
    (tmp_path / "out").write_text("years of work")
    code, _, err = compared(capsys, runs / "b", "--out", tmp_path / "out")
    assert (code, (tmp_path / "out").read_text()) == (2, "years of work")
    assert "is no folder" in err


def test_nothing_to_compare_is_one_line(capsys):
    code, _, err = compared(capsys)
    assert code == 2
    assert "RUN" in err
