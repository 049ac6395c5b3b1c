"""All measurements of every method on one model: bytes, gradient error, seconds and operations."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from torch import nn

from fedact.config.updates import WHOLE
from fedact.measure.cost import count_flops, time_micro_batches, time_ratios, time_steps
from fedact.measure.gradient_error import GradientError, measure_gradient_errors
from fedact.measure.memory import stored_bytes
from fedact.measure.step import Batch, parts, prefix_outputs, shallow_copy
from fedact.nn.adaptation import draw_second_factors
from fedact.nn.surgery import compress, recompute_of, trained_parameters

BASELINE, AT_ONCE = "vanilla", "vanilla at once"
"""What times and operations are relative to; for methods in micro-batches, vanilla on the whole batch."""
IN_STREAMS = " in streams"


@dataclass(frozen=True)
class MethodMeasurement:
    """One method's gradient error, and the cost of its step from the first trained layer on, forward and backward.

    seconds: median over the timed batches. time_ratio: median of the times relative to vanilla's on the same batch;
    time_range: the least and the largest of these ratios. The three are None where no time was measured. flops:
    floating-point operations; flops_ratio: relative to vanilla's. device_bytes: the peak with trained weights, gradients and
    the raw images of a micro-batch; an optimizer's state comes on top. recompute: see
    ``nn.surgery.recompute_of``. room_bytes: for the wide maps of a block in streams, None for whole layers.
    """

    gradient_error: GradientError
    seconds: float | None
    time_ratio: float | None
    time_range: tuple[float, float] | None
    flops: int
    flops_ratio: float
    device_bytes: int
    recompute: int = 0
    room_bytes: int | None = None

    @property
    def name(self) -> str:
        """The method's name, and whether its blocks ran in streams: ``exact in streams``."""
        return self.gradient_error.method + ("" if self.room_bytes is None else IN_STREAMS)

    def row(self) -> dict[str, Any]:
        """Return all figures, by name, in one dictionary."""
        costs = {name: value for name, value in vars(self).items() if name != "gradient_error"}
        return asdict(self.gradient_error) | costs


def compressed_models(
    model: nn.Module,
    names: Sequence[str],
    layers: int,
    train_norm: bool = False,
    seed: int = 0,
    room: int | None = None,
    update: str = WHOLE,
) -> dict[str, nn.Module]:
    """Return a model under each method, by the method's name, all sharing the weights; the model itself is left plain.

    layers: trained convolutions; train_norm: also train the batch norms after the first of them. room: bytes for the wide
    maps of a block in streams, None for whole layers. update: what of the layers is trained; B of a low-rank one is small.
    """
    models = {name: compress(shallow_copy(model), name, layers, train_norm, seed, room, update=update) for name in names}
    return {name: draw_second_factors(each) for name, each in models.items()}


def measure_methods(
    models: Mapping[str, nn.Module],
    baseline: nn.Module,
    warm_up: Batch,
    batches: Sequence[Batch],
    timed: Sequence[Batch],
    draws: int = 8,
    seed: int = 0,
    micro_batch: int | None = None,
    room: int | None = None,
) -> list[MethodMeasurement]:
    """Return the measurement of every model, in their order, against a vanilla model of the same weights and layers.

    warm_up: the first batch of every model, before any that counts. batches: measured for bytes and gradients; timed: for
    seconds. draws: gradients of each batch where a method is random. micro_batch: examples at a time for the models, but not
    for the baseline; the time is then the whole step's, frozen prefix included. room: what the models were made with.
    """
    errors = measure_gradient_errors(models, baseline, warm_up, batches, draws, seed, micro_batch)
    x, reference = batches[0][0], BASELINE if micro_batch is None else AT_ONCE
    prefix = prefix_outputs(baseline, x)
    flops = {name: count_flops(model, batches[0], prefix_outputs(model, x, prefix)) for name, model in models.items()}
    baseline_flops = flops[BASELINE] if BASELINE in flops else count_flops(baseline, batches[0], prefix)
    rows: list[dict[str, float]] = []
    if timed and micro_batch is None:
        rows = time_steps({BASELINE: baseline, **models}, warm_up, timed, seed=seed)
    elif timed:
        sizes = {name: (model, micro_batch) for name, model in models.items()}
        rows = time_micro_batches({AT_ONCE: (baseline, None), **sizes}, [warm_up, *timed], seed=seed)
    images = stored_bytes(next(parts(batches[0], micro_batch)))
    beside_peak = 2 * stored_bytes(trained_parameters(baseline).values()) + images
    return [
        MethodMeasurement(
            gradient_error=error,
            **_times(rows, error.method, reference),
            flops=flops[error.method],
            flops_ratio=flops[error.method] / baseline_flops,
            device_bytes=error.peak_bytes + beside_peak,
            recompute=recompute_of(models[error.method]),
            room_bytes=room,
        )
        for error in errors
    ]


def _times(rows: Sequence[Mapping[str, float]], name: str, reference: str) -> dict[str, Any]:
    """Return what a measurement says of time; rows: seconds of each batch, by model, none where none was timed."""
    if not rows:
        return {"seconds": None, "time_ratio": None, "time_range": None}
    ratios = time_ratios(rows, name, reference)
    return {
        "seconds": median(row[name] for row in rows),
        "time_ratio": median(ratios),
        "time_range": (min(ratios), max(ratios)),
    }
