"""Seconds of a fleet's rounds beside those of a plain PyTorch loop with the same updates, round by round in turn."""

import copy
import json
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from fedact.cli.console import show
from fedact.cli.signals import catch_late
from fedact.config.schema import Config
from fedact.config.seeds import Purpose, generator
from fedact.data import Loader
from fedact.federation.simulation import Simulation
from fedact.federation.worker_grid import start_workers
from fedact.models.tasks import task_loss
from fedact.models.weights import fill
from fedact.nn.surgery import apply, restore, trained_parameters
from fedact.reports.run.tables import listing
from fedact.storage.disk import write_whole
from fedact.storage.rows import Row
from fedact.storage.run_folder import RunFolder
from fedact.training.averaging import RunningMean
from fedact.training.experiment import Experiment
from fedact.training.local import epochs
from fedact.training.recipe import recipe

UNSTEADY = 2
"""Rounds that are not timed: evaluation alone, then the one that fills the caches."""


@dataclass(eq=False)
class Race:
    """A fleet and a plain loop, which take a round in turn; seconds: of each timed round, the fleet's and the loop's."""

    experiment: Experiment
    model: nn.Module
    names: set[str]
    seconds: list[tuple[float, float]] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)

    def on_round(self, row: Row, _: list[Row]) -> None:
        """Take the fleet's time, and let the loop make the same round."""
        fleet = time.perf_counter() - self.started
        begun = time.perf_counter()
        plain_round(self.experiment, self.model, self.names, row["round"])
        if row["round"] >= UNSTEADY:
            self.seconds.append((fleet, time.perf_counter() - begun))
        self.started = time.perf_counter()


def run_round_bench(config: Config, methods: list[str], file: Path | None) -> int:
    """Time the rounds of a fleet, with the prefix cache and without, print the table and write the file."""
    catch_late()
    sizes = list(dict.fromkeys([config.cache_size, "none"]))
    figures = [_raced(config.model_copy(update={"method": (name,)}), size) for name in methods for size in sizes]
    rows = [
        (str(row["method"]), str(row["cache"]), f"{row['fleet']:.2f}", f"{row['plain']:.2f}", f"{row['ratio']:.2f}")
        for row in figures
    ]
    title = f"Seconds of a round, {config.clients} clients, batch {config.batch_size} (medians of rounds taken in turn)"
    show(listing(title, ("method", "prefix cache", "fedact", "plain PyTorch", "ratio"), rows))
    if file:
        write_whole(file, json.dumps({"config": config.model_dump(mode="json"), "rounds": figures}, indent=1) + "\n")
    return 0


def _raced(config: Config, size: str) -> Row:
    """Return the median seconds of a round."""
    settings = config.model_copy(update={"cache_size": size, "lr": config.usual_lr})
    with tempfile.TemporaryDirectory() as folder, start_workers(config) as workers:
        simulation = Simulation(settings, RunFolder(Path(folder)), workers=workers)
        simulation.open_folder()
        experiment, (method,) = simulation.experiment, simulation.methods
        model = copy.deepcopy(simulation.workspace.model_with({}))
        (plan,) = simulation.plans[method].values()
        names = set(trained_parameters(apply(model, plan)))
        race = Race(experiment, restore(model), names)
        simulation.run(race.on_round)
    fleet, plain = (median(times) for times in zip(*race.seconds, strict=True))
    ratio = median(one / other for one, other in race.seconds)
    return {"method": method, "cache": size, "fleet": fleet, "plain": plain, "ratio": ratio}


def plain_round(experiment: Experiment, model: nn.Module, names: set[str], number: int) -> dict[str, Tensor]:
    """Return the weights after a round in plain PyTorch: the mean over clients, weighted by their examples, by name."""
    mean = RunningMean()
    config = experiment.config
    settings = recipe(config, number)
    for client, (examples, _) in enumerate(experiment.parts):
        fill(model, experiment.start)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in names)
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.SGD(parameters, settings.lr, settings.momentum, weight_decay=settings.weight_decay)
        random = generator(config.seed, Purpose.LOCAL_TRAINING, number, client)
        loader = Loader(experiment.train.take(examples), experiment.preprocessing, config.device)
        for x, y in map(loader, epochs(len(loader), settings, random)):
            optimizer.zero_grad()
            task_loss(model(x), y).backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(parameters, settings.clip_norm)
            optimizer.step()
        mean.add({name: p.detach() for name, p in model.named_parameters() if name in names}, len(examples))
    return mean.over(experiment.start)
