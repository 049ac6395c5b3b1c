"""From a config to everything a run stands on: data, who holds it, the model's start and its preprocessing."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from fedact.config.errors import ConfigError, unknown
from fedact.config.plan import Plan
from fedact.config.schema import Config, cache_folder
from fedact.config.seeds import Purpose, generator, torch_seed
from fedact.config.spec import build
from fedact.data import DATASETS, SEGMENTATION_DATASETS, Examples, Preprocessing, Request, Source, settled
from fedact.data.partition import PARTITIONS, deal, halves, in_proportions_of, stratified
from fedact.data.partition.base import HeldOutParts
from fedact.models.initialization import (
    after_encoder,
    check_images,
    check_masks,
    check_model,
    check_network,
    fit_head,
    network,
    pretrain,
    resolved,
    weights_key,
)
from fedact.models.tasks import check_task
from fedact.models.weights import fill, fills_encoder_alone, load_into
from fedact.nn.surgery import apply, carries, restore
from fedact.training.frozen_prefix import FrozenPart
from fedact.training.local import Measured
from fedact.training.prefix_cache import PrefixCache

LARGE_BATCH = 10_000


@dataclass(frozen=True, eq=False)
class Experiment:
    """What a run stands on; config is complete: nothing in it is left for the data or the weights to say.

    start: the weights that every client and every method starts from; the process's one model is had through
    ``model_with``. classes: names where they are known, else their numbers. parts: each client's (training, held-out)
    positions in ``train``. measured: the bytes of every plan and
    shape that this process has measured; they hold for every client under that plan. frozen, caches: the model's frozen
    part under a plan, and what it made of "train" and "test" examples.
    """

    config: Config
    start: dict[str, Tensor]
    preprocessing: Preprocessing
    classes: tuple[str, ...]
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
        fill(self.model, {**self.start, **tensors})
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


def prepare(config: Config, side: int | None = None) -> Experiment:
    """Load the data, deal it to the clients and make the model's start.

    side: pixels of a decoded picture, by default as many as the preprocessing takes. Raises ConfigError for whatever the
    config names that is not there or does not fit.
    """
    check_names(config)
    config, weights, preprocessing = resolved(config)
    source, server, clients = _dealt(config, side or preprocessing.resize)
    # A batch of examples is made for planning, whatever there are to train on.
    if config.batch_size > (most := max(LARGE_BATCH, len(source.train))):
        raise ConfigError(f"--batch-size {config.batch_size} is more than {most:,}")
    parts = _parts(config, clients.labels)
    with torch_seed(config.seed, Purpose.INITIAL_WEIGHTS):
        model = network(config, source.classes)
    if weights:
        key = weights_key(config)
        load_into(model, weights.tensors, getattr(config, key), key)
    check_network(config, model)
    check_images(config, model, _frame(clients, preprocessing))
    test = source.test
    if config.weights == "pretrain":
        test = _test_for(config, clients, test)
        encoded = weights is not None and fills_encoder_alone(model, weights.tensors)
        pretrain(config, model, server, preprocessing, after_encoder(model) if encoded else ())
    fit_head(config, model, server, preprocessing)
    chosen = stratified(server.labels, config.calibration, generator(config.seed, Purpose.CALIBRATION))
    calibration = server.take(chosen)
    start = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    model.to(config.device)
    return Experiment(config, start, preprocessing, _names(source), clients, parts, test, calibration, model)


def prepare_with(config: Config, start: dict[str, Tensor], preprocessing: Preprocessing) -> Experiment:
    """Return what a client alone stands on: the data dealt as the server deals it, and a start that came from there.

    config: complete, see ``Experiment``. There are no examples of the server's. Raises ConfigError as ``prepare`` does, and
    for a start that is another model's.
    """
    check_names(config)
    source, _, clients = _dealt(config, preprocessing.resize)
    parts = _parts(config, clients.labels)
    model = network(config, source.classes)
    own = model.state_dict()
    if {name: tensor.shape for name, tensor in own.items()} != {name: tensor.shape for name, tensor in start.items()}:
        raise ConfigError(f"the start is not that of {config.model} for {source.classes} classes")
    check_network(config, model)
    model.to(config.device)
    nothing = clients.take(np.arange(0))
    return Experiment(config, start, preprocessing, _names(source), clients, parts, nothing, nothing, model)


def _dealt(config: Config, side: int) -> tuple[Source, Examples, Examples]:
    """Return the data, the server's own examples and the clients'; sets how many threads this process computes with."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    source = settled(_limited(config, _source(config, side)), cache_folder() / "decoded")
    return source, *_server_and_clients(config, source.train)


def _names(source: Source) -> tuple[str, ...]:
    return source.names or tuple(map(str, range(source.classes)))


def _frame(examples: Examples, preprocessing: Preprocessing) -> tuple[int, ...]:
    """Return the height and width of a model's input."""
    return examples.images.shape[1:3] if preprocessing.whole else (preprocessing.resolution,) * 2


def _test_for(config: Config, clients: Examples, test: Examples) -> Examples:
    """Return the test examples in the proportions of what clients hold; all of them where they have masks."""
    if config.task == "segmentation":
        return test
    if len(missing := np.setdiff1d(clients.labels, test.labels)):
        raise ConfigError(f"clients hold class {missing[0]}, of which no test example is left: use more test examples")
    return test.only(in_proportions_of(test.labels, clients.labels, generator(config.seed, Purpose.HALVES)))


def check_names(config: Config) -> None:
    """Raise ConfigError for a model, data set or partition that is in no table, and for a task that is not installed."""
    check_task(config.task)
    check_model(config)
    check_masks(config)
    if config.task == "classification" and config.dataset in SEGMENTATION_DATASETS.keys() - DATASETS.keys():
        raise ConfigError(f"--dataset {config.dataset} is for --task segmentation, not for --task {config.task}")
    if config.dataset not in (known := _datasets(config)):
        raise unknown("data set", config.dataset, known)
    build("partition", PARTITIONS, config.partition)


def _datasets(config: Config) -> Mapping[str, Callable[[Request], Source]]:
    return SEGMENTATION_DATASETS if config.task == "segmentation" else DATASETS


def _source(config: Config, side: int) -> Source:
    random = generator(config.seed, Purpose.DATA)
    sizes = (config.max_examples, config.max_test_examples)
    request = Request(config.data_path(), *sizes, random, side, config.void, config.partition_by)
    return _datasets(config)[config.dataset](request)


def _limited(config: Config, source: Source) -> Source:
    """Return as many examples as were asked for, chosen by their labels alone: nothing is decoded yet."""
    random = generator(config.seed, Purpose.DATA, client=1)
    asked = ((source.train, config.max_examples), (source.test, config.max_test_examples))
    train, test = (
        examples if most is None else examples.only(stratified(examples.labels, most, random)) for examples, most in asked
    )
    return replace(source, train=train, test=test)


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


@lru_cache(maxsize=1)
def shared(config_json: str) -> Experiment:
    """Return this process's one experiment for a config: server and clients in one process share data and model."""
    return prepare(Config.model_validate_json(config_json))
