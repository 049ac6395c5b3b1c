"""Figures of the spectra of a layer's activation, and of what an explained variance costs."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from fedact.measure.spectrum import MODES, Truncation
from fedact.reports.style import COLORS, GUIDE, PERCENT, error_axis, plain, size_axis

CLAIM = (20, 80)
"""The paper's "less than 20 % of the components hold more than 80 % of the variance"."""
Spectra = Mapping[str, Tensor]


def explained_variance(layers: Mapping[str, Spectra]) -> Figure:
    """Return, mode by mode, the explained variance against the share of components, a line a layer."""
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    panels = figure.subplots(1, len(MODES), sharey=True)
    for axes, mode in zip(panels, MODES, strict=True):
        for color, (name, spectra) in zip(COLORS, layers.items(), strict=False):
            explained = np.concatenate([[0], spectra[mode].cumsum(0).numpy()]) * PERCENT
            axes.plot(np.linspace(0, PERCENT, len(explained)), explained, color=color, label=name)
        axes.axvline(CLAIM[0], color=GUIDE, linestyle=":", linewidth=1)
        axes.axhline(CLAIM[1], color=GUIDE, linestyle=":", linewidth=1)
        axes.set_title(mode, loc="left", fontsize=10)
        axes.set_xlabel("components (%)")
        plain(axes)
    panels[0].set_ylabel("explained variance (%)")
    panels[-1].legend(frameon=False, fontsize=8, loc="lower right")
    return figure


def what_variance_costs(layers: Mapping[str, Sequence[Truncation]], exact_bytes: Mapping[str, int]) -> Figure:
    """Return bytes and gradient error against the explained variance, and against each other, a line a layer.

    exact_bytes: of each layer's whole input, as a dashed line.
    """
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    size, error, both = figure.subplots(1, 3)
    for color, (name, cuts) in zip(COLORS, layers.items(), strict=False):
        variances, sizes, errors = zip(*((cut.variance, cut.bytes, cut.error) for cut in cuts), strict=True)
        style = {"color": color, "marker": "o", "markersize": 4}
        size.plot(variances, sizes, **style)
        size.axhline(exact_bytes[name], color=color, linestyle="--", linewidth=1)
        error.plot(variances, errors, **style)
        both.plot(sizes, errors, **style, label=name)
    for axes, title, label in (
        (size, "bytes kept (dashed: the whole tensor)", "explained variance"),
        (error, "squared error of the weight gradient", "explained variance"),
        (both, "squared error of the weight gradient", "bytes kept"),
    ):
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlabel(label)
    size_axis(size, "y")
    size_axis(both, "x", marks=(1, 4))
    error_axis(error)
    error_axis(both)
    plain(size, error, both)
    both.legend(frameon=False, fontsize=8)
    return figure
