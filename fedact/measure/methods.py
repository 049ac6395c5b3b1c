"""Every figure of the bench about every method, from a model and batches."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from torch import nn

from fedact.measure.cost import count_flops, time_micro_batches, time_ratios, time_steps
from fedact.measure.gradient_error import GradientError, measure_gradient_errors
from fedact.measure.step import Batch, prefix_outputs, shallow_copy
from fedact.nn.surgery import compress

BASELINE, AT_ONCE = "vanilla", "vanilla at once"
"""What everything is relative to; beside methods in micro-batches, in whole batches."""


@dataclass(frozen=True)
class MethodMeasurement:
    """One method: its gradient_error, and what a step costs from the first trained layer on, forward and backward.

    seconds: the median over the timed batches; time_ratio: the median of the times relative to vanilla's on the same batch,
    time_range: the least and the largest of them; None where no time was measured. flops_ratio: relative to vanilla's.
    """

    gradient_error: GradientError
    seconds: float | None
    time_ratio: float | None
    time_range: tuple[float, float] | None
    flops: int
    flops_ratio: float

    def row(self) -> dict[str, Any]:
        """Return all figures under their names."""
        own = {name: value for name, value in vars(self).items() if name != "gradient_error"}
        return asdict(self.gradient_error) | own


def compressed_models(
    model: nn.Module, names: Sequence[str], layers: int, train_norm: bool = False, seed: int = 0
) -> dict[str, nn.Module]:
    """Return a model for each method, all of them sharing the weights; the one given is left plain."""
    return {name: compress(shallow_copy(model), name, layers, train_norm, seed) for name in names}


def measure_methods(
    models: Mapping[str, nn.Module],
    baseline: nn.Module,
    warm_up: Batch,
    batches: Sequence[Batch],
    timed: Sequence[Batch],
    draws: int = 8,
    seed: int = 0,
    micro_batch: int | None = None,
) -> list[MethodMeasurement]:
    """Measure every model against the baseline, a vanilla model with the same weights and trained layers.

    warm_up: the first batch of every model, before any that counts. timed: the batches whose time is measured. micro_batch:
    what the models, but not the baseline, take a batch in; the time is then the whole step's.
    """
    found = measure_gradient_errors(models, baseline, warm_up, batches, draws, seed, micro_batch)
    x = batches[0][0]
    prefix = prefix_outputs(baseline, x)
    flops = {name: count_flops(model, batches[0], prefix_outputs(model, x, prefix)) for name, model in models.items()}
    own = flops[BASELINE] if BASELINE in flops else count_flops(baseline, batches[0], prefix)
    rows = _timed(models, baseline, warm_up, timed, seed, micro_batch) if timed else []
    return [_measured(each, rows, flops[each.method], own) for each in found]


def _timed(
    models: Mapping[str, nn.Module],
    baseline: nn.Module,
    warm_up: Batch,
    timed: Sequence[Batch],
    seed: int,
    micro_batch: int | None,
) -> list[dict[str, float]]:
    if micro_batch is None:
        return time_steps({BASELINE: baseline, **models}, warm_up, timed, seed=seed)
    sizes = {name: (model, micro_batch) for name, model in models.items()}
    return time_micro_batches({AT_ONCE: (baseline, None), **sizes}, [warm_up, *timed], seed=seed)


def _measured(
    gradient_error: GradientError, rows: Sequence[Mapping[str, float]], flops: int, baseline: int
) -> MethodMeasurement:
    name = gradient_error.method
    seconds = [row[name] for row in rows]
    ratios = time_ratios(rows, name, AT_ONCE if rows and AT_ONCE in rows[0] else BASELINE)
    return MethodMeasurement(
        gradient_error=gradient_error,
        seconds=median(seconds) if rows else None,
        time_ratio=median(ratios) if rows else None,
        time_range=(min(ratios), max(ratios)) if rows else None,
        flops=flops,
        flops_ratio=flops / baseline,
    )
