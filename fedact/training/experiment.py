"""The data and initial weights of a run as one frozen value, and how the data is read and partitioned."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
from torch import Tensor

from fedact.config.code import check_almost_code, is_code
from fedact.config.errors import ConfigError, unknown
from fedact.config.hub import is_hub
from fedact.config.natural import natural_clients
from fedact.config.paths import cache_folder
from fedact.config.schema import Config
from fedact.config.seeds import Purpose, generator
from fedact.config.settings.data import USUAL_CALIBRATION
from fedact.data import DATASETS, SEGMENTATION_DATASETS, Examples, Preprocessing, Request, Source, decode_files
from fedact.data.partition import halves, make_partition, partition_examples, stratified
from fedact.data.partition.base import HeldOutParts
from fedact.data.readers.hub import check_hub
from fedact.data.readers.hub import load as load_hub
from fedact.data.readers.own_code import check_own_data, own_source
from fedact.models.initialization import check_masks, check_model
from fedact.models.tasks import check_task
from fedact.storage.checkpoints import digest
from fedact.training.natural import Dealt, HeldOutClients, deal_naturally, roles_of, with_owners
from fedact.training.prefix_cache import fingerprint

MOST_CALIBRATION, CALIBRATION_SHARE = 256, 10
"""The server's examples for trials, where their number is free: a tenth, but no more than these."""


@dataclass(frozen=True, eq=False)
class Experiment:
    """A run's config, data and initial weights.

    config: complete, with what data and weights decide filled in. start: the initial weights of every method. classes:
    their names, or numbers where they have none. train: the clients' examples. parts: by client, (training, held-out)
    positions in ``train``. test, calibration: the server's examples. client_names, server_names, held_out: of a natural
    partition, see ``Dealt``.
    """

    config: Config
    start: dict[str, Tensor]
    preprocessing: Preprocessing
    classes: tuple[str, ...]
    train: Examples
    parts: HeldOutParts
    test: Examples
    calibration: Examples
    client_names: tuple[str, ...] | None = None
    server_names: tuple[str, ...] = ()
    held_out: HeldOutClients | None = None

    @cached_property
    def start_digest(self) -> str:
        """The digest of the initial weights."""
        return digest(self.start)

    @cached_property
    def image_digests(self) -> dict[str, str]:
        """The digests of the images of ``examples``, by the same words."""
        return {which: fingerprint(examples.images) for which, examples in self.examples.items()}

    @cached_property
    def partition_digest(self) -> str:
        """The digest of whose each training example is, held-out clients' too."""
        every = [self.parts.whole, *([] if self.held_out is None else [self.held_out.parts])]
        names = [*(self.client_names or ()), "", *self.server_names, "", *(self.held_out.names if self.held_out else ())]
        return fingerprint(*names, *(array for parts in every for array in (parts.order, parts.bounds)))

    @property
    def examples(self) -> dict[str, Examples]:
        """The clients' examples by "train", the test set's by "test", and the held-out clients' by "held_out"."""
        held_out = {} if self.held_out is None else {"held_out": self.held_out.examples}
        return {"train": self.train, "test": self.test, **held_out}

    @cached_property
    def held(self) -> np.ndarray:
        """How many examples of each class all clients hold together, held-out ones too; pixels where there are masks."""
        return self.train.class_sizes(len(self.classes))


def read_data(config: Config, side: int) -> tuple[Source, Dealt]:
    """Return the data set, and who has what of it; side: the size of decoded pictures, in pixels.

    The server's are a class-skewed half with ``--weights pretrain``, else a small calibration set; of a natural partition
    they are those of as many of its clients.
    """
    random = generator(config.seed, Purpose.DATA)
    sizes = (config.max_examples, config.max_test_examples)
    request = Request(config.data_path(), *sizes, random, side, config.void, config.partition_by, examples_needed(config))
    source, rule = _reader(config)(request), natural_clients(config.partition)

    def wanted(examples: int) -> int:
        return examples // 2 if config.weights == "pretrain" else calibration_size(config, examples)

    if rule is not None:
        source = with_owners(config, rule, source)
        roles = roles_of(config, rule, source, wanted)
    source = decode_files(_limited(config, source), cache_folder() / "decoded")
    if rule is not None:
        return source, deal_naturally(config, source, roles, wanted(len(source.train)))
    server, clients = _server_and_clients(config, source)
    return source, Dealt(server, clients, partition(config, clients.labels))


def examples_needed(config: Config) -> int:
    """Return the fewest training examples of which the server can take its part and every client enough."""
    if natural_clients(config.partition) is not None:
        return 0
    of_clients = make_partition(config.partition).examples_needed(config.fleet_size)
    return 2 * of_clients if config.weights == "pretrain" else of_clients + calibration_size(config, 2 * of_clients)


def class_names(source: Source) -> tuple[str, ...]:
    """Return the names of a data set's classes, their numbers where it has none."""
    return source.names or tuple(map(str, range(source.classes)))


def check_names(config: Config) -> None:
    """Raise ConfigError for an unknown model, data set or partition, and for a task whose packages are not installed."""
    check_task(config.task)
    check_model(config)
    check_masks(config)
    if is_code(config.dataset):
        check_own_data(config)
    elif is_hub(config.dataset):
        check_hub(config.dataset, config.task)
    elif config.task == "classification" and config.dataset in SEGMENTATION_DATASETS.keys() - DATASETS.keys():
        raise ConfigError(f"--dataset {config.dataset} is for --task segmentation, not for --task {config.task}")
    elif config.dataset not in (known := _datasets(config)):
        check_almost_code(config.dataset, "--dataset")
        raise unknown("data set", config.dataset, known)
    if natural_clients(config.partition) is None:
        make_partition(config.partition)


def _datasets(config: Config) -> Mapping[str, Callable[[Request], Source]]:
    return SEGMENTATION_DATASETS if config.task == "segmentation" else DATASETS


def _reader(config: Config) -> Callable[[Request], Source]:
    """Return what reads the config's data set; code of the user's own where it names such."""
    if is_code(config.dataset):
        return lambda request: own_source(config, request)
    if is_hub(config.dataset):
        return partial(load_hub, config.dataset)
    return _datasets(config)[config.dataset]


def _limited(config: Config, source: Source) -> Source:
    """Return the data set with at most ``max_examples`` and ``max_test_examples``, stratified; nothing is decoded yet."""
    random = generator(config.seed, Purpose.DATA, client=1)
    limits = ((source.train, config.max_examples), (source.test, config.max_test_examples))
    train, test = (
        examples if most is None else examples.subset(stratified(examples.labels, most, random)) for examples, most in limits
    )
    return replace(source, train=train, test=test)


def _server_and_clients(config: Config, source: Source) -> tuple[Examples, Examples]:
    """Return the server's examples and the clients': two class-skewed halves, or a small calibration set and the rest."""
    random, train = generator(config.seed, Purpose.HALVES), source.train
    if config.weights == "pretrain":
        first, second = halves(train.labels, random)
        if source.server_examples is not None:
            first = first[stratified(train.labels[first], source.server_examples, random)]
        return train.subset(first), train.subset(second)
    size = calibration_size(config, len(train))
    if size >= len(train):
        raise ConfigError(f"--calibration {size} leaves nothing of {len(train)} examples for the clients")
    calibration = stratified(train.labels, size, random)
    return train.take(calibration), train.subset(np.setdiff1d(np.arange(len(train)), calibration))


def calibration_size(config: Config, examples: int) -> int:
    """Return how many of so many training examples the server plans with, and tries depths and learning rates on."""
    if config.calibration != "auto":
        return config.calibration
    # The server's half is there in any case: what it was pretrained on tells nothing in a trial.
    usual = min(USUAL_CALIBRATION, examples // 2)
    return usual if config.weights == "pretrain" else min(MOST_CALIBRATION, max(usual, examples // CALIBRATION_SHARE))


def partition(config: Config, labels: np.ndarray) -> HeldOutParts:
    """Return the clients' (training, held-out) positions among the examples with these labels, by the config's rule."""
    rule = make_partition(config.partition)
    return HeldOutParts(
        partition_examples(rule, labels, config.fleet_size, generator(config.seed, Purpose.PARTITION)), config.seed
    )
