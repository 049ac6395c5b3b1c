"""The bench in the terminal: the experiment's model and images, every method, a table and a file."""

import json
import os
from dataclasses import asdict
from pathlib import Path

import numpy as np
from rich.console import Console
from torch import Tensor

from fedact.compression import make_method, method_name, published
from fedact.config import Config
from fedact.data import Loader
from fedact.errors import ConfigError
from fedact.experiment import Experiment, prepare
from fedact.fidelity import measure_fidelity
from fedact.records import write_whole
from fedact.report import fidelity_table
from fedact.seeds import Purpose, generator

ALONE = {"clients": 1, "partition": "iid"}
"""Nothing is federated here."""


def run_bench(config: Config, methods: list[str] | None, batches: int, file: Path | None) -> int:
    """Measure the methods (every one as published, where none is named), print the table, write the file."""
    names = [method_name(make_method(text)) for text in methods or published()]
    if file and not os.access(file.absolute().parent, os.W_OK):
        raise ConfigError(f"--json {file} cannot be written")
    experiment = prepare(config.model_copy(update={"calibration": config.batch_size * (batches + 1), **ALONE}))
    warm_up, *measured = _batches(experiment, batches + 1)
    model, layers = experiment.model_with({}), int(config.layers)
    found = measure_fidelity(model, names, warm_up, measured, layers, config.train_norm, config.seed)
    Console().print(fidelity_table(_title(experiment.config), found))
    if file:
        figures = {"config": experiment.config.model_dump(mode="json"), "methods": [asdict(each) for each in found]}
        write_whole(file, json.dumps(figures, indent=1) + "\n")
    return 0


def _batches(experiment: Experiment, count: int) -> list[tuple[Tensor, Tensor]]:
    """Return batches of the server's own examples, in an order drawn from the seed."""
    config = experiment.config
    loader = Loader(experiment.calibration, experiment.preprocessing, config.device)
    needed = config.batch_size * count
    if len(loader) < needed:
        raise ConfigError(f"{needed} examples are needed, there are {len(loader)}: lower --batch-size or --batches")
    order = generator(config.seed, Purpose.CALIBRATION, client=1).permutation(needed)
    return [loader(part) for part in np.split(order, count)]


def _title(config: Config) -> str:
    images = f"{config.dataset} at {config.resolution} px, batch {config.batch_size}"
    return f"{config.model}, {images}, last {config.layers} layers"
