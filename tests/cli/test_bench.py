"""The bench's door: what it prints and writes is what was measured, and what cannot be is refused in one line."""

import json

import pytest

from fedact.bench import main
from fedact.compression import METHODS, make_method, published

SMALL = ["--dataset", "synthetic", "--max-examples", "300", "--weights", "none", "--width", "0.35", "--resolution", "32",
         "--batch-size", "4"]  # fmt: skip
QUICK = [*SMALL, "--layers", "1", "--batches", "1", "--steps", "1", "--draws", "2"]
WEIGHTS = {"features.18.0.weight", "classifier.1.weight"}
FIELDS = {
    "method", "saved_bytes", "state_bytes", "peak_bytes", "paper_bytes", "draws", "cosine", "bias", "variance", "error",
    "total_error", "seconds", "time_ratio", "time_range", "flops", "flops_ratio", "device_bytes",
    "recompute", "room_bytes",
}  # fmt: skip


def test_every_method_is_measured_as_published_and_written_down(tmp_path, capsys):
    file, figure = tmp_path / "out.json", tmp_path / "out.png"
    assert main([*QUICK, "--json", str(file), "--figure", str(figure)]) == 0
    methods = json.loads(file.read_text())["methods"]
    assert [each["method"].partition(":")[0] for each in methods] == [*METHODS, "exact"]
    printed = capsys.readouterr().out
    assert all(f"{each['saved_bytes']:,}" in printed and each["method"] in printed for each in methods)
    assert all(set(each) == FIELDS and set(each["cosine"]) == WEIGHTS for each in methods)
    assert all(each["time_ratio"] > 0 and each["flops"] > 0 for each in methods)
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_in_streams_exact_gradients_stay_so_and_less_is_alive(tmp_path, capsys):
    file = tmp_path / "out.json"
    methods = ["--method", "vanilla", "--method", "exact", "--method", "exact:derive=3", "--layers", "4"]
    assert main([*QUICK, *methods, "--micro-batch", "1", "--room", "8KB", "--json", str(file)]) == 0
    whole, streamed = [], []
    for each in json.loads(file.read_text())["methods"]:
        (whole if each["room_bytes"] is None else streamed).append(each)
    assert [each["method"] for each in whole] == ["vanilla", "exact", "exact:derive=3"]
    # What keeps everything has no streams, and what makes inputs again has those of its method.
    assert [(each["method"], each["room_bytes"]) for each in streamed] == [("exact", 8000)]
    assert min(streamed[0]["cosine"].values()) > 0.99999
    assert streamed[0]["peak_bytes"] < min(each["peak_bytes"] for each in whole)
    assert "exact in streams" in capsys.readouterr().out


def test_published_settings_are_understood_and_cover_the_table():
    assert [text.partition(":")[0] for text in published()] == list(METHODS)
    assert all(make_method(text) for text in published())


def test_a_sweep_takes_the_given_methods_settings_and_no_time_where_none_is_asked_for(tmp_path):
    file = tmp_path / "out.json"
    flags = ["--sweep", "--method", "quantize:bits=8", "--method", "vanilla", "--steps", "0", "--json", str(file)]
    assert main([*QUICK, *flags]) == 0
    methods = json.loads(file.read_text())["methods"]
    assert [each["method"] for each in methods] == ["quantize", "quantize:bits=4", "quantize:bits=8", "vanilla"]
    assert all(each["time_ratio"] is None for each in methods)


def test_updates_are_compared_by_what_they_train(tmp_path):
    file = tmp_path / "out.json"
    methods = ["--method", "exact", "--method", "hosvd:variance=0.5", "--steps", "0", "--json", str(file)]
    assert main([*QUICK, *methods, "--update", "lora:rank=2"]) == 0
    exact, hosvd = (each["cosine"] for each in json.loads(file.read_text())["methods"])
    factors = {f"features.18.0.lora_{factor}" for factor in "ab"}
    assert set(exact) == set(hosvd) == {*factors, "classifier.1.weight"}
    assert min(exact.values()) > 0.99999
    # A's gradient comes from the input, B's from A times it.
    assert hosvd["features.18.0.lora_a"] < 0.99 < 0.99999 < hosvd["features.18.0.lora_b"]


def test_equal_cosine_writes_the_least_bytes_by_layer_and_the_ratios(tmp_path, capsys):
    file = tmp_path / "out.json"
    flags = ["--equal-cosine", "--layers", "1", "--every", "30", "--method", "quantize", "--json", str(file)]
    assert main([*SMALL, *flags]) == 0
    written = json.loads(file.read_text())
    families = ["hosvd:bits=8", "hosvd", "quantize"]
    assert [each["family"] for each in written["ratios"]] == families * 2
    assert [each["baseline"] for each in written["ratios"]] == ["hosvd:bits=8"] * 3 + ["hosvd"] * 3
    assert {each["layer"] for each in written["least"]} == {"features.8.conv.0.0", "features.18.0"}
    printed = capsys.readouterr().out
    assert all(f"{each['bytes']:,}" in printed for each in written["least"] if each["method"])


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--layers", "auto"], "not auto"),
        (["--layers", "99"], "52 convolutions"),
        (["--batches", "0"], "from 1"),
        (["--steps", "-1"], "from 0"),
        (["--draws", "1"], "from 2"),
        (["--steps", "many"], "invalid int value"),
        (["--method", "hosvdd"], "did you mean 'hosvd'"),
        (["--jsom", "x"], "did you mean '--json'"),
        (["--json", "/nowhere/out.json"], "no folder"),
        (["--figure", "/nowhere/out.png"], "no folder"),
        (["--figure", "out.pdf"], "ends in .png"),
        (["--batch-size", "1000"], "300"),
        (["--strategy", "fedavg"], "unknown argument"),
        (["--rounds", "0"], "whole number from 1"),
        (["--clients", "3"], "--rounds"),
        (["--equal-cosine", "--sweep"], "leave --sweep out"),
        (["--equal-cosine", "--room", "9KB"], "leave --room out"),
        (["--room", "much"], "much"),
        (["--update", "lorra"], "did you mean 'lora'"),
        (["--update", "bias", "--room", "9KB"], "--room is for --update layers, not for --update bias"),
        (["--update", "bias", "--recompute", "2"], "--recompute is for --update layers"),
        (["--method", "vanilla", "--room", "9KB"], "--room"),
        (["--equal-cosine", "--layers", "0"], "at least 1"),
        (["--equal-cosine", "--method", "exact"], "no setting"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(flags, says, capsys):
    assert main([*SMALL, *flags]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
