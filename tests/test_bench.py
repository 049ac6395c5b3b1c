"""The bench: what it prints is what was measured."""

import json

import pytest
import torch

import fedact
from fedact.bench import main
from fedact.compression import METHODS, published
from fedact.fidelity import measure_fidelity
from tests.networks import batch, measure, normed, train

SMALL = ["--dataset", "synthetic", "--max-examples", "300", "--weights", "none", "--width", "0.35", "--resolution", "32",
         "--batch-size", "4"]  # fmt: skip


def test_every_method_is_measured_as_published_and_written_down(tmp_path, capsys):
    file = tmp_path / "out.json"
    assert main([*SMALL, "--layers", "1", "--batches", "1", "--json", str(file)]) == 0
    methods = json.loads(file.read_text())["methods"]
    assert [each["method"].partition(":")[0] for each in methods] == list(METHODS)
    printed = capsys.readouterr().out
    assert all(f"{each['saved_bytes']:,}" in printed for each in methods)
    assert all(set(each["cosine"]) == {"features.18.0.weight", "classifier.1.weight"} for each in methods)


def test_published_settings_are_understood_and_cover_the_table():
    assert [text.partition(":")[0] for text in published()] == list(METHODS)
    assert all(fedact.compression.make_method(text) for text in published())


def test_bytes_are_the_ledgers_and_exact_methods_have_the_exact_gradient():
    torch.manual_seed(0)
    model, (warm_up, first, second) = normed(), (batch(6, seed) for seed in range(3))
    found = measure_fidelity(
        model, ["vanilla", "exact", "quantize:bits=2", "hosvd:variance=0.5"], warm_up, [first, second], 2
    )
    vanilla, exact, few_bits, truncated = found
    fedact.compress(model, "exact", layers=2)
    assert exact.saved_bytes == measure(model, lambda: train(model, *first), first).saved_bytes
    assert all(cosine == pytest.approx(1, abs=1e-6) for each in (vanilla, exact) for cosine in each.cosine.values())
    assert all(error < 1e-9 for each in (vanilla, exact) for error in each.error.values())
    assert all(0 < each.cosine["3.weight"] < 0.9999 for each in (few_bits, truncated))


def test_the_model_is_left_plain():
    model = normed()
    kinds = [type(module) for module in model.modules()]
    measure_fidelity(model, ["hosvd:variance=0.5"], batch(2), [batch(2)], 1)
    assert [type(module) for module in model.modules()] == kinds
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--layers", "auto"], "not auto"),
        (["--layers", "99"], "52 convolutions"),
        (["--batches", "0"], "from 1"),
        (["--method", "hosvdd"], "did you mean 'hosvd'"),
        (["--jsom", "x"], "did you mean '--json'"),
        (["--json", "/nowhere/out.json"], "no folder"),
        (["--batch-size", "1000"], "300"),
        (["--rounds", "3"], "unknown argument"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(flags, says, capsys):
    assert main([*SMALL, *flags]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
