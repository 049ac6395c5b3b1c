"""The owner of a process's one model: an experiment, the model that all train in turn, and what was measured with it."""

from collections.abc import Callable, Mapping

import numpy as np
from torch import Tensor, nn

from fedact.config.errors import ConfigError
from fedact.config.plan import Plan
from fedact.config.schema import Config
from fedact.config.seeds import Purpose, generator, torch_seed
from fedact.data import Preprocessing
from fedact.data.partition import stratified
from fedact.models.initialization import (
    after_encoder,
    check_images,
    check_network,
    fit_head,
    network,
    pretrain,
    resolved,
    weights_key,
)
from fedact.models.weights import fill, fills_encoder_alone, load_into
from fedact.nn.surgery import apply, renew, restore, trained_parameters
from fedact.training.experiment import Experiment, check_names, class_names, partition, read_data, test_examples
from fedact.training.frozen_prefix import FrozenPrefix
from fedact.training.local import Measured
from fedact.training.prefix_cache import PrefixCache
from fedact.training.threads import use_threads

LARGE_BATCH = 10_000


class Workspace:
    """An experiment, and all that changes while it runs in this process.

    model: of the experiment; its weights and layers are what the last call of ``model_with`` or ``model_under`` made them.
    plan: the plan that the model carries, None where it is plain or a caller's own.
    measured: the bytes of every plan and shape that this process has measured; they hold for every client under that plan.
    frozen, caches: the model's frozen prefix under a plan, and its outputs for "train" and "test" examples on disk.
    """

    def __init__(self, experiment: Experiment, model: nn.Module) -> None:
        self.experiment = experiment
        self.model = model
        self.plan: Plan | None = None
        self.measured: Measured = {}
        self.frozen: dict[Plan, FrozenPrefix | None] = {}
        self.caches: dict[tuple[Plan, str], PrefixCache | None] = {}
        self._trained: dict[Plan, list[str]] = {}

    def model_with(self, tensors: Mapping[str, Tensor]) -> nn.Module:
        """Return the model, plain and in eval mode: the initial weights, with these tensors in their places.

        The caller may change it as it likes, until somebody asks for the model again.
        """
        self.plan = None
        restore(self.model).zero_grad()
        fill(self.model, {**self.experiment.start, **tensors})
        return self.model.eval()

    def model_under(self, plan: Plan, tensors: Mapping[str, Tensor], seed: int = 0) -> nn.Module:
        """Return the model under a plan, with these tensors in their places; callers leave its layers as they are.

        tensors: all that any plan of the method trains. seed: what is random in a method follows from it.
        """
        if plan == self.plan:
            # Nothing but these tensors can have changed since.
            own = dict(self.model.named_parameters())
            for name, tensor in tensors.items():
                own[name].data.copy_(tensor)
            return renew(self.model, plan, seed)
        apply(self.model_with(tensors), plan, seed)
        self.plan = plan
        return self.model

    def trained_by(self, plan: Plan) -> list[str]:
        """Return the names of the tensors that a plan trains."""
        if plan not in self._trained:
            self._trained[plan] = list(trained_parameters(apply(self.model_with({}), plan)))
        return self._trained[plan]


def prepare(config: Config, side: int | None = None) -> Workspace:
    """Return a workspace for a config: its data read and dealt to the clients, its model initialised and pretrained.

    side: pixels of a decoded picture, by default as many as the preprocessing takes. From here on the process computes with
    the config's number of threads. Raises ConfigError for whatever the config names that is not there or does not fit.
    """
    check_names(config)
    use_threads(config.threads)
    config, weights, preprocessing = resolved(config)
    source, server, clients = read_data(config, side or preprocessing.resize)
    # A batch of examples is made for planning, whatever there are to train on.
    if config.batch_size > (most := max(LARGE_BATCH, len(source.train))):
        raise ConfigError(f"--batch-size {config.batch_size} is more than {most:,}")
    parts = partition(config, clients.labels)
    with torch_seed(config.seed, Purpose.INITIAL_WEIGHTS):
        model = network(config, source.classes)
    if weights:
        key = weights_key(config)
        load_into(model, weights.tensors, getattr(config, key), key)
    check_network(config, model)
    frame = clients.images.shape[1:3] if preprocessing.whole else (preprocessing.resolution,) * 2
    check_images(config, model, frame)
    test = source.test
    if config.weights == "pretrain":
        test = test_examples(config, clients, test)
        encoded = weights is not None and fills_encoder_alone(model, weights.tensors)
        pretrain(config, model, server, preprocessing, after_encoder(model) if encoded else ())
    fit_head(config, model, server, preprocessing)
    chosen = stratified(server.labels, config.calibration, generator(config.seed, Purpose.CALIBRATION))
    calibration = server.take(chosen)
    start = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    model.to(config.device)
    experiment = Experiment(config, start, preprocessing, class_names(source), clients, parts, test, calibration)
    return Workspace(experiment, model)


def prepare_with(config: Config, start: dict[str, Tensor], preprocessing: Preprocessing) -> Workspace:
    """Return a client's own workspace: the data dealt as the server deals it, and initial weights that came from there.

    config: complete, see ``Experiment``. There are no examples of the server's. Raises ConfigError as ``prepare`` does, and
    for initial weights that are another model's.
    """
    check_names(config)
    use_threads(config.threads)
    source, _, clients = read_data(config, preprocessing.resize)
    parts = partition(config, clients.labels)
    model = network(config, source.classes)
    own = model.state_dict()
    if {name: tensor.shape for name, tensor in own.items()} != {name: tensor.shape for name, tensor in start.items()}:
        raise ConfigError(f"the start is not that of {config.model} for {source.classes} classes")
    check_network(config, model)
    model.to(config.device)
    nothing = clients.take(np.arange(0))
    experiment = Experiment(config, start, preprocessing, class_names(source), clients, parts, nothing, nothing)
    return Workspace(experiment, model)


_OPEN: dict[str, Workspace] = {}
"""The one registry of this process, with the workspace that is open in it, by what it was made from.

Flower's messages carry text alone: a server and its clients in one process, each Ray worker and each real device find their
workspace here by the text that a message carries.
"""


def workspace_for(key: str, make: Callable[[], Workspace]) -> Workspace:
    """Return this process's workspace under a key; where another one is open, or none, it is made and takes its place."""
    if key not in _OPEN:
        made = make()
        _OPEN.clear()
        _OPEN[key] = made
    return _OPEN[key]


def workspace_of(config_json: str) -> Workspace:
    """Return this process's workspace for a config, which a server and clients in one process share."""
    return workspace_for(config_json, lambda: prepare(Config.model_validate_json(config_json)))


def close_workspaces() -> None:
    """Let go of the open workspace, its model and its data."""
    _OPEN.clear()
