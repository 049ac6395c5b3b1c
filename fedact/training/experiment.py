"""What a run stands on, as a frozen value, and how its data is read and dealt."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from fedact.config.errors import ConfigError, unknown
from fedact.config.schema import Config, cache_folder
from fedact.config.seeds import Purpose, generator
from fedact.config.spec import build
from fedact.data import DATASETS, SEGMENTATION_DATASETS, Examples, Preprocessing, Request, Source, decode_files
from fedact.data.partition import PARTITIONS, halves, in_proportions_of, partition_examples, stratified
from fedact.data.partition.base import HeldOutParts
from fedact.models.initialization import check_masks, check_model
from fedact.models.tasks import check_task


@dataclass(frozen=True, eq=False)
class Experiment:
    """What a run stands on; config is complete: nothing in it is left for the data or the weights to say.

    start: the weights that every client and every method starts from. classes: names where they are known, else their
    numbers. parts: each client's (training, held-out) positions in ``train``. test, calibration: the server's own examples.
    """

    config: Config
    start: dict[str, Tensor]
    preprocessing: Preprocessing
    classes: tuple[str, ...]
    train: Examples
    parts: HeldOutParts
    test: Examples
    calibration: Examples


def read_data(config: Config, side: int) -> tuple[Source, Examples, Examples]:
    """Return the data set, the server's own examples and the clients'; side: pixels of a decoded picture.

    The server's are a skewed half with ``--weights pretrain``, else a small calibration set.
    """
    random = generator(config.seed, Purpose.DATA)
    sizes = (config.max_examples, config.max_test_examples)
    request = Request(config.data_path(), *sizes, random, side, config.void, config.partition_by)
    source = decode_files(_limited(config, _datasets(config)[config.dataset](request)), cache_folder() / "decoded")
    return source, *_server_and_clients(config, source.train)


def class_names(source: Source) -> tuple[str, ...]:
    """Return the names of a data set's classes, their numbers where it has none."""
    return source.names or tuple(map(str, range(source.classes)))


def test_examples(config: Config, clients: Examples, test: Examples) -> Examples:
    """Return the test examples in the proportions of what clients hold; all of them where they have masks."""
    if config.task == "segmentation":
        return test
    if len(missing := np.setdiff1d(clients.labels, test.labels)):
        raise ConfigError(f"clients hold class {missing[0]}, of which no test example is left: use more test examples")
    return test.subset(in_proportions_of(test.labels, clients.labels, generator(config.seed, Purpose.HALVES)))


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


def _limited(config: Config, source: Source) -> Source:
    """Return as many examples as were asked for, chosen by their labels alone: nothing is decoded yet."""
    random = generator(config.seed, Purpose.DATA, client=1)
    asked = ((source.train, config.max_examples), (source.test, config.max_test_examples))
    train, test = (
        examples if most is None else examples.subset(stratified(examples.labels, most, random)) for examples, most in asked
    )
    return replace(source, train=train, test=test)


def _server_and_clients(config: Config, train: Examples) -> tuple[Examples, Examples]:
    """Return the server's own examples and the clients': two skewed halves, or a small calibration set and the rest."""
    random = generator(config.seed, Purpose.HALVES)
    if config.weights == "pretrain":
        first, second = halves(train.labels, random)
        return train.subset(first), train.subset(second)
    if config.calibration >= len(train):
        raise ConfigError(f"--calibration {config.calibration} leaves nothing of {len(train)} examples for the clients")
    own = stratified(train.labels, config.calibration, random)
    return train.take(own), train.subset(np.setdiff1d(np.arange(len(train)), own))


def partition(config: Config, labels: np.ndarray) -> HeldOutParts:
    """Return who of the clients holds which of the examples with these labels, (training, held-out) positions each."""
    rule = build("partition", PARTITIONS, config.partition)
    return HeldOutParts(
        partition_examples(rule, labels, config.clients, generator(config.seed, Purpose.PARTITION)), config.seed
    )
