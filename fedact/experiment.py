"""From a config to everything a run stands on: data, who holds it, the model's start and its preprocessing."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedact.config import Config, cache_folder
from fedact.data import DATASETS, Examples, Preprocessing, Request, Source
from fedact.errors import ConfigError, unknown
from fedact.frozen import FrozenPart
from fedact.models import RESOLUTIONS, SCALABLE, check_model_name, make_model
from fedact.partition import PARTITIONS, deal, halves, in_proportions_of, stratified
from fedact.parts import HeldOutParts
from fedact.plans import Plan
from fedact.prefix_cache import PrefixCache
from fedact.pretraining import PretrainingRecipe, pretrained
from fedact.seeds import Purpose, generator, torch_seed
from fedact.spec import build
from fedact.surgery import apply, carries, restore, trained_layers
from fedact.training import Measured
from fedact.weights import Weights, from_file, from_torchvision, load_into, plain_preprocessing

SMALL_DATASETS = ("digits", "synthetic")
SMALL_WIDTH = 0.35
LARGE_BATCH = 10_000
SMALL_RESOLUTION = 64


@dataclass(frozen=True, eq=False)
class Experiment:
    """What a run stands on; config is complete: nothing in it is left for the data or the weights to say.

    start: the weights that every client and every method starts from; the process's one model is had through
    ``model_with``. parts: each client's (training, held-out) positions in ``train``. measured: the bytes of every plan and
    shape that this process has measured; they hold for every client under that plan. frozen, caches: the model's frozen
    part under a plan, and what it made of "train" and "test" examples.
    """

    config: Config
    start: dict[str, Tensor]
    preprocessing: Preprocessing
    train: Examples
    parts: HeldOutParts
    test: Examples
    calibration: Examples
    model: nn.Module = field(repr=False)
    measured: Measured = field(default_factory=dict, repr=False)
    frozen: dict[Plan, FrozenPart | None] = field(default_factory=dict, repr=False)
    caches: dict[tuple[Plan, str], PrefixCache | None] = field(default_factory=dict, repr=False)

    def model_with(self, tensors: Mapping[str, Tensor]) -> nn.Module:
        """Return the process's model, plain and in eval mode: the start, with these tensors in their places."""
        restore(self.model).zero_grad()
        self.model.load_state_dict({**self.start, **tensors})
        return self.model.eval()

    def model_under(self, plan: Plan, tensors: Mapping[str, Tensor], seed: int = 0) -> nn.Module:
        """Return the process's model under a plan, with these tensors in their places.

        tensors: all that any plan of the method trains. seed: what is random in a method follows from it.
        """
        if carries(self.model, plan):
            # Nothing but these can have changed since.
            own = dict(self.model.named_parameters())
            for name, tensor in tensors.items():
                own[name].data.copy_(tensor)
        else:
            self.model_with(tensors)
        return apply(self.model, plan, seed)


def prepare(config: Config) -> Experiment:
    """Load the data, deal it to the clients and make the model's start.

    Raises ConfigError for whatever the config names that is not there or does not fit.
    """
    source, server, clients = _dealt(config)
    # A batch of examples is made for planning, whatever there are to train on.
    if config.batch_size > (most := max(LARGE_BATCH, len(source.train))):
        raise ConfigError(f"--batch-size {config.batch_size} is more than {most:,}")
    parts = _parts(config, clients.labels)
    config, weights, preprocessing = _resolved(config)
    with torch_seed(config.seed, Purpose.INITIAL_WEIGHTS):
        model = make_model(config.model, source.classes, config.width)
    # A third faster on CPUs than the default layout.
    model.to(memory_format=torch.channels_last)
    if weights:
        load_into(model, weights.tensors, config.weights)
    _check_model(config, model)
    test = source.test
    if config.weights == "pretrain":
        if len(missing := np.setdiff1d(clients.labels, test.labels)):
            raise ConfigError(f"clients hold class {missing[0]}, of which no test example is left: use more test examples")
        test = test.take(in_proportions_of(test.labels, clients.labels, generator(config.seed, Purpose.HALVES)))
        _pretrain(config, model, server, preprocessing)
    chosen = stratified(server.labels, config.calibration, generator(config.seed, Purpose.CALIBRATION))
    calibration = server.take(chosen)
    start = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    return Experiment(config, start, preprocessing, clients, parts, test, calibration, model.to(config.device))


def prepare_with(config: Config, start: dict[str, Tensor], preprocessing: Preprocessing) -> Experiment:
    """Return what a client alone stands on: the data dealt as the server deals it, and a start that came from there.

    config: complete, see ``Experiment``. There are no examples of the server's. Raises ConfigError as ``prepare`` does, and
    for a start that is another model's.
    """
    source, _, clients = _dealt(config)
    parts = _parts(config, clients.labels)
    model = make_model(config.model, source.classes, config.width).to(memory_format=torch.channels_last)
    own = model.state_dict()
    if {name: tensor.shape for name, tensor in own.items()} != {name: tensor.shape for name, tensor in start.items()}:
        raise ConfigError(f"the start is not that of {config.model} for {source.classes} classes")
    _check_model(config, model)
    nothing = clients.take(np.arange(0))
    return Experiment(config, start, preprocessing, clients, parts, nothing, nothing, model.to(config.device))


def _dealt(config: Config) -> tuple[Source, Examples, Examples]:
    """Return the data, the server's own examples and the clients'; sets how many threads this process computes with."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    source = _limited(config, _source(config))
    return source, *_server_and_clients(config, source.train)


def _check_model(config: Config, model: nn.Module) -> None:
    """Raise ConfigError for more layers than there are, or a device that is not there."""
    trained_layers(model, 0 if config.layers == "auto" else config.layers)
    if config.device != "cpu" and torch.device(config.device).index not in (None, *range(torch.cuda.device_count())):
        raise ConfigError(f"--device {config.device}: there are {torch.cuda.device_count()} CUDA devices")
    if config.device != "cpu" and not torch.cuda.is_available():
        raise ConfigError(f"--device {config.device}: CUDA is not available here; allowed is cpu")


def check_names(config: Config) -> None:
    """Raise ConfigError for a model, data set or partition that is in no table."""
    check_model_name(config.model)
    if config.width is not None and config.model not in SCALABLE:
        raise ConfigError(f"--width is for {', '.join(SCALABLE)}; {config.model} has one width")
    if config.dataset not in DATASETS:
        raise unknown("data set", config.dataset, DATASETS)
    build("partition", PARTITIONS, config.partition)


def _source(config: Config) -> Source:
    check_names(config)
    random = generator(config.seed, Purpose.DATA)
    return DATASETS[config.dataset](Request(config.data_path(), config.max_examples, config.max_test_examples, random))


def _limited(config: Config, source: Source) -> Source:
    random = generator(config.seed, Purpose.DATA, client=1)

    def some(examples: Examples, most: int | None) -> Examples:
        if most is None:
            return examples
        chosen = stratified(examples.labels, most, random)
        return examples if len(chosen) == len(examples) else examples.take(chosen)

    return Source(some(source.train, config.max_examples), some(source.test, config.max_test_examples), source.classes)


def _server_and_clients(config: Config, train: Examples) -> tuple[Examples, Examples]:
    """Return the server's own examples and the clients': two skewed halves, or a small calibration set and the rest."""
    random = generator(config.seed, Purpose.HALVES)
    if config.weights == "pretrain":
        first, second = halves(train.labels, random)
        return train.only(first), train.only(second)
    if config.calibration >= len(train):
        raise ConfigError(f"--calibration {config.calibration} leaves nothing of {len(train)} examples for the clients")
    own = stratified(train.labels, config.calibration, random)
    return train.take(own), train.only(np.setdiff1d(np.arange(len(train)), own))


def _parts(config: Config, labels: np.ndarray) -> HeldOutParts:
    rule = build("partition", PARTITIONS, config.partition)
    return HeldOutParts(deal(rule, labels, config.clients, generator(config.seed, Purpose.PARTITION)), config.seed)


def _resolved(config: Config) -> tuple[Config, Weights | None, Preprocessing]:
    """Fill in what the data set and the weights decide, and make paths absolute: a run goes on from any folder."""
    filled: dict[str, Any] = {"width": _width(config)}
    if config.dataset not in SMALL_DATASETS:
        filled["data_dir"] = config.data_path().absolute()
    if config.weights in ("none", "pretrain"):
        weights, preprocessing = None, plain_preprocessing(config.resolution or SMALL_RESOLUTION)
    elif config.weights == "imagenet":
        weights = from_torchvision(config.model, config.resolution)
        preprocessing = weights.preprocessing
    else:
        file = Path(config.weights).expanduser()
        filled["weights"] = str(file.absolute())
        weights = from_file(file, config.resolution, RESOLUTIONS.get(config.model, 224))
        preprocessing = weights.preprocessing
    filled["resolution"] = preprocessing.resolution
    return config.model_copy(update=filled), weights, preprocessing


def _width(config: Config) -> float | None:
    """Return the width multiplier, None for a model that has none."""
    if config.width is not None or config.model not in SCALABLE:
        return config.width
    return SMALL_WIDTH if config.dataset in SMALL_DATASETS and config.weights == "pretrain" else 1.0


def _pretrain(config: Config, model: nn.Module, half: Examples, preprocessing: Preprocessing) -> None:
    random = generator(config.seed, Purpose.PRETRAINING)
    name = f"{config.model} {config.width} {config.seed}"
    folder, recipe = cache_folder() / "pretrained", PretrainingRecipe(epochs=config.pretrain_epochs)
    # Dropout draws from torch's own generator.
    with torch_seed(config.seed, Purpose.PRETRAINING):
        model.load_state_dict(pretrained(model, name, half, preprocessing, random, folder, recipe))


@lru_cache(maxsize=1)
def shared(config_json: str) -> Experiment:
    """Return this process's one experiment for a config: server and clients in one process share data and model."""
    return prepare(Config.model_validate_json(config_json))
