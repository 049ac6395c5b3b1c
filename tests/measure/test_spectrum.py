"""Activations taken apart: the spectra are those of numpy's SVD, and what is cut adds up."""

import numpy as np
import pytest
import tensorly as tl
import torch

import fedact
from fedact.config.errors import ConfigError
from fedact.measure.equal_cosine import capture
from fedact.measure.spectrum import MODES, components_for, spectra, truncations
from fedact.nn.surgery import convolutions
from fedact.reports.spectrum_figures import explained_variance, what_variance_costs
from fedact.simulate import main
from fedact.training.trained_model import trained_model
from tests.support.networks import batch, normed
from tests.support.runs import SMALL


def layers():
    torch.manual_seed(0)
    model = normed().eval()
    return capture(model, batch(6), convolutions(model)[-2:])


def test_spectra_are_the_squared_singular_values_of_the_unfoldings():
    for layer in layers():
        for mode, share in enumerate(spectra(layer.x).values()):
            expected = np.linalg.svd(tl.unfold(layer.x.double().numpy(), mode), compute_uv=False) ** 2
            np.testing.assert_allclose(share.numpy(), expected[: len(share)] / expected.sum(), atol=1e-6)


def test_as_few_components_as_reach_the_variance():
    x = torch.zeros(4, 3, 2, 2)
    x[0, 0, 0, 0], x[1, 1, 1, 1] = 3.0, 1.0
    assert components_for(x, 0.8) == {mode: (1, count) for mode, count in zip(MODES, (4, 3, 2, 2), strict=True)}
    assert components_for(x, 0.95)["channel"] == (2, 3)


def test_more_variance_costs_more_bytes_and_leaves_less_error():
    for layer in layers():
        found = truncations(layer, (0.5, 0.9, 1.0))
        assert [cut.bytes for cut in found] == sorted(cut.bytes for cut in found)
        assert found[0].error > found[1].error > found[2].error == pytest.approx(0, abs=1e-6)
        assert (found[2].kept_variance, found[2].cosine) == pytest.approx((1, 1))
        assert all(cut.ranks == tuple(n for n, _ in components_for(layer.x, cut.variance).values()) for cut in found)


def test_a_line_a_layer_in_every_panel():
    found = {layer.name: layer for layer in layers()}
    figure = explained_variance({name: spectra(layer.x) for name, layer in found.items()})
    assert [len(axes.lines) for axes in figure.axes] == [len(found) + 2] * 4
    assert all(line.get_ydata()[-1] == pytest.approx(100) for axes in figure.axes for line in axes.lines[: len(found)])
    costs = what_variance_costs(
        {name: truncations(layer, (0.5, 0.9)) for name, layer in found.items()},
        {name: layer.x.nbytes for name, layer in found.items()},
    )
    assert [len(axes.lines) for axes in costs.axes] == [2 * len(found), len(found), len(found)]
    frames = [axes.spines[side] for drawn in (figure, costs) for axes in drawn.axes for side in ("top", "right")]
    assert not any(frame.get_visible() for frame in frames)


def test_a_runs_model_comes_back_as_its_rounds_left_it(tmp_path):
    command = [*SMALL, "--layers", "1", "--rounds", "1", "--method", "exact", "--method", "quantize:bits=4"]
    assert main([*command, "--out", str(tmp_path / "run")]) == 0
    run = fedact.load_run(tmp_path / "run")
    from fedact.training.batches import test_batches
    from fedact.training.evaluation import evaluate

    for method in ("exact", "quantize:bits=4"):
        workspace, model = trained_model(run, method)
        examples = len(workspace.experiment.test)
        found = evaluate(model, test_batches(workspace, None, (), np.arange(examples), "test"), examples)
        rounds = run.rounds[run.rounds["method"] == method]
        assert found.score == pytest.approx(rounds["accuracy"].iloc[-1])
    with pytest.raises(ConfigError, match="finished no round of vanilla, but of exact, quantize"):
        trained_model(run, "vanilla")
