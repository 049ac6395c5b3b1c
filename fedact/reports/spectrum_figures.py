"""A layer's activation taken apart, as figures."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from torch import Tensor

from fedact.measure.spectrum import MODES, Truncation
from fedact.reports.run.figures import COLORS, error_scale

PERCENT = 100
BYTES_PER_KB = 1000
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
        axes.axvline(CLAIM[0], color="#777777", linestyle=":", linewidth=1)
        axes.axhline(CLAIM[1], color="#777777", linestyle=":", linewidth=1)
        axes.set_title(mode, loc="left", fontsize=10)
        axes.set_xlabel("components (%)")
        _plain(axes)
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
        variances, kilobytes = [cut.variance for cut in cuts], [cut.bytes / BYTES_PER_KB for cut in cuts]
        errors = [cut.error for cut in cuts]
        style = {"color": color, "marker": "o", "markersize": 4}
        size.plot(variances, kilobytes, **style)
        size.axhline(exact_bytes[name] / BYTES_PER_KB, color=color, linestyle="--", linewidth=1)
        error.plot(variances, errors, **style)
        both.plot(kilobytes, errors, **style, label=name)
    size.set_yscale("log")
    both.set_xscale("log")
    for axis in (size.yaxis, both.xaxis):
        axis.set_major_locator(LogLocator(subs=(1, 3)))
        axis.set_major_formatter(FuncFormatter(lambda kilobytes, _: f"{kilobytes:g}"))
        axis.set_minor_formatter(NullFormatter())
    for axes, title, label in (
        (size, "KB kept (dashed: the whole tensor)", "explained variance"),
        (error, "squared error of the weight gradient", "explained variance"),
        (both, "squared error of the weight gradient", "KB kept"),
    ):
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlabel(label)
        _plain(axes)
    for axes in (error, both):
        error_scale(axes)
    both.legend(frameon=False, fontsize=8)
    return figure


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
