"""The bench in the terminal: the experiment's model and images, every method, a table, a file and a figure."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from fedact.cli.console import show
from fedact.cli.signals import catch_late
from fedact.compression import Method, families, make_method, method_name, published, swept
from fedact.config.errors import ConfigError
from fedact.config.schema import Config
from fedact.config.seeds import Purpose, generator
from fedact.config.updates import WHOLE
from fedact.data import Loader
from fedact.measure.equal_cosine import BASELINES, bytes_ratios, capture, convolutions_to_compare, least_bytes
from fedact.measure.floor import floor
from fedact.measure.methods import BASELINE, compressed_models, measure_methods
from fedact.measure.rate_distortion import limit_line
from fedact.nn.surgery import trained_layers
from fedact.reports.bench.figures import error_against_bytes
from fedact.reports.bench.tables import cost_table, gradient_table, least_table, ratio_table
from fedact.reports.style import png
from fedact.storage.disk import write_whole
from fedact.training.experiment import Experiment
from fedact.training.workspace import Workspace, prepare

ALONE = {"clients": 1, "partition": "iid"}
"""Nothing is federated here."""
RECOMPUTED = "exact:derive=3"
"""The exact gradient with recompute, the rival of every codec."""
Batches = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Options:
    """The bench's flags beside those of Config."""

    batches: int
    steps: int
    draws: int
    every: int
    micro_batch: int | None
    room: int | None
    json: Path | None
    figure: Path | None
    sweep: bool
    equal_cosine: bool


def run_bench(config: Config, methods: list[str] | None, options: Options) -> int:
    """Measure the methods (where none is named, every one as it is compared), print the tables, write the files."""
    catch_late()
    rivals = [*published(), *([RECOMPUTED] if config.update == WHOLE else [])]
    chosen = swept(methods) if options.sweep else methods or rivals
    names = list(dict.fromkeys(method_name(scheduled(config, text)) for text in chosen))
    streamed = [] if options.room is None else in_streams(names)
    workspace = _prepared(config, options.batches + 1)
    experiment = workspace.experiment
    warm_up, *batches = _batches(experiment, options.batches + 1)
    model, layers = workspace.model_with({}), int(config.layers)
    baseline = compressed_models(model, [BASELINE], layers, config.train_norm, update=config.update)[BASELINE]
    # Time asks for another batch, not for other examples.
    loader, random = _loader(experiment), generator(config.seed, Purpose.CALIBRATION, client=2)
    timed = [loader(random.choice(len(loader), experiment.config.batch_size, replace=False)) for _ in range(options.steps)]
    measurements = []
    for room in (None,) if options.room is None else (None, options.room):
        measured = names if room is None else streamed
        models = compressed_models(model, measured, layers, config.train_norm, config.seed, room, config.update)
        measurements += measure_methods(
            models, baseline, warm_up, batches, timed, options.draws, config.seed, options.micro_batch, room
        )
    trained = f"last {config.layers} layers" + ("" if config.update == WHOLE else f", {config.update}")
    title = _title(experiment.config, trained, options.micro_batch)
    least = floor(model, batches[0])
    show(cost_table(title, measurements, least, options.micro_batch), gradient_table(measurements))
    _write(
        options.json, experiment.config, {"methods": [measured.row() for measured in measurements], "floor": asdict(least)}
    )
    if options.figure:
        # The limits are of whole weights' gradients.
        captured = capture(model, batches[0], trained_layers(model, layers)) if config.update == WHOLE else []
        share = (options.micro_batch or config.batch_size) / config.batch_size
        limits = limit_line(captured, share=share) if captured else []
        write_whole(options.figure, png(error_against_bytes(title, measurements, limits, least.bytes)))
    return 0


def in_streams(names: list[str]) -> list[str]:
    """Return the methods that go with room: those that keep less than everything, and make nothing again in another way."""
    methods = {name: make_method(name) for name in names}
    found = [name for name, method in methods.items() if method.traits.saves_less and not (method.derive or method.segment)]
    if not found:
        raise ConfigError(f"--room goes with methods that keep less and have no recompute of their own, not {names[0]}")
    return found


def scheduled(config: Config, text: str) -> Method:
    """Return the method that a text names, with the recompute that was given where it has none of its own."""
    return make_method(text).recomputing(0 if config.recompute == "auto" else config.recompute)


def run_equal_cosine(config: Config, methods: list[str] | None, options: Options) -> int:
    """Find the least bytes for each cosine, layer by layer, print the tables, write the file."""
    catch_late()
    wanted = families(methods)
    if lacking := [method_name(base) for base in wanted if methods and len(base.traits.sweep.values) < 2]:
        raise ConfigError(f"--equal-cosine: {lacking[0]} has no setting that trades bytes for error")
    # A state that was found on the very batch it is measured on says nothing about the next one.
    bases = [base for base in wanted if len(base.traits.sweep.values) > 1 and (methods or not base.traits.reads_state)]
    bases = list(dict.fromkeys([*map(make_method, BASELINES), *bases]))
    workspace = _prepared(config, 1)
    experiment = workspace.experiment
    (batch,) = _batches(experiment, 1)
    model = workspace.model_with({})
    layers = capture(model, batch, convolutions_to_compare(model, int(config.layers), options.every))
    least_rows = [least for layer in layers for base in bases for least in least_bytes(layer, base, seed=config.seed)]
    ratios = bytes_ratios(least_rows)
    title = _title(experiment.config, f"{len(layers)} convolutions, one at a time")
    show(least_table(title, least_rows), ratio_table(ratios))
    figures = {"least": [asdict(least) for least in least_rows], "ratios": [asdict(ratio) for ratio in ratios]}
    _write(options.json, experiment.config, figures)
    return 0


def _prepared(config: Config, batches: int) -> Workspace:
    return prepare(config.model_copy(update={"calibration": config.batch_size * batches, **ALONE}))


def _batches(experiment: Experiment, count: int) -> Batches:
    """Return batches of the server's own examples, in an order drawn from the seed."""
    config = experiment.config
    loader, needed = _loader(experiment), config.batch_size * count
    if len(loader) < needed:
        raise ConfigError(f"{needed} examples are needed, there are {len(loader)}: lower --batch-size or --batches")
    order = generator(config.seed, Purpose.CALIBRATION, client=1).permutation(needed)
    return [loader(part) for part in np.split(order, count)]


def _loader(experiment: Experiment) -> Loader:
    return Loader(experiment.calibration, experiment.preprocessing, experiment.config.device)


def _title(config: Config, layers: str, micro_batch: int | None = None) -> str:
    parts = "" if micro_batch is None else f" in micro-batches of {micro_batch}"
    return f"{config.model_name}, {config.data_title}, batch {config.batch_size}{parts}, {layers}"


def _write(file: Path | None, config: Config, figures: Mapping[str, Any]) -> None:
    if file:
        write_whole(file, json.dumps({"config": config.model_dump(mode="json"), **figures}, indent=1) + "\n")
