"""A process's experiment with its one model, which all clients train in turn, and measurements of it."""

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from fedact.config.choice import Choice
from fedact.config.errors import ConfigError
from fedact.config.own_code import run_code
from fedact.config.plan import Plan
from fedact.config.schema import Config
from fedact.config.seeds import Purpose, generator, torch_seed
from fedact.data import Preprocessing
from fedact.data.kinds import is_picture
from fedact.data.partition import stratified
from fedact.models.initialization import (
    check_network,
    decoder_parts,
    fit_head,
    network,
    pretrain,
    resolved,
    weights_key,
)
from fedact.models.inputs import check_device_inputs, check_settings, fitted_preprocessing
from fedact.models.tasks import Outcome
from fedact.models.weights import fill, fills_encoder_alone, load_into
from fedact.nn.adaptation import initial, is_factor, merged
from fedact.nn.layers import LayerCodec
from fedact.nn.layers.stored_sizes import codecs_of
from fedact.nn.surgery import apply, reset_states, restore, trained_parameters
from fedact.training.experiment import Experiment, calibration_size, check_names, class_names, read_data
from fedact.training.frozen_prefix import FrozenPrefix
from fedact.training.prefix_cache import PrefixCache
from fedact.training.step_bytes import Measured
from fedact.training.threads import use_threads

if TYPE_CHECKING:
    from fedact.training.trial import TrialFleet

LARGE_BATCH = 10_000


class Workspace:
    """An experiment, and all state that changes while it runs in this process.

    model: the one model; the last call of ``model_with`` or ``model_under`` set its weights and layers. plan: the plan
    that it carries, None where it is plain or was changed by a caller. trained, codecs: the parameters that it trains, by
    name, and the codecs of its layers.
    measured: the memory of steps measured in this process, the same for every client under a plan. frozen, caches: by
    plan, the model's frozen prefix, and by plan and "train" or "test", the disk cache of its outputs; None where there
    is none. choice: of depth and learning rate, the same for all methods and budgets; None until it is made. trials: by
    which it is made here, None until the first. start_outcomes: of the initial model on the test set, by (trained
    convolutions, whether plainly, whether in whole maps), None where nobody trains.
    """

    def __init__(self, experiment: Experiment, model: nn.Module) -> None:
        run_code(experiment.config)
        self.experiment = experiment
        self.model = model
        self.plan: Plan | None = None
        self.trained: dict[str, nn.Parameter] = {}
        self.codecs: dict[str, LayerCodec] = {}
        self.measured: Measured = {}
        self.frozen: dict[Plan, FrozenPrefix | None] = {}
        self.caches: dict[tuple[Plan, str], PrefixCache | None] = {}
        self.choice: Choice | None = None
        self.trials: TrialFleet | None = None
        self.start_outcomes: dict[tuple[int, bool, bool] | None, Outcome] = {}
        self._trained: dict[Plan, list[str]] = {}

    def model_with(self, tensors: Mapping[str, Tensor]) -> nn.Module:
        """Return the model, plain and in eval mode: the initial weights, with these tensors in their places.

        The caller may change the model, until the next call of this method or of ``model_under``.
        """
        self.plan = None
        restore(self.model).zero_grad()
        fill(self.model, {**self.experiment.start, **self._plain(tensors)})
        return self.model.eval()

    def _plain(self, tensors: Mapping[str, Tensor], apart: Iterable[str] = ()) -> dict[str, Tensor]:
        """Return trained tensors as those of the plain model, without the factors of low-rank updates that are apart."""
        config = self.experiment.config
        return merged(tensors, self.experiment.start, config.update, config.seed, apart)

    def model_under(self, plan: Plan, tensors: Mapping[str, Tensor], seed: int = 0) -> nn.Module:
        """Return the model under a plan, with these tensors in their places; callers leave its layers as they are.

        tensors: all that any plan of the method trains. seed: of the methods' random numbers.
        """
        if plan == self.plan:
            # Nothing but these tensors can have changed since.
            with torch.no_grad():
                others = self._plain(tensors, self.trained)
                for name, tensor in (others | {name: tensors[name] for name in self.trained if name in tensors}).items():
                    # Not by its data: an operation is counted, so that copies of the weights are known to be old.
                    parameter = self.trained.get(name)
                    (self.model.get_parameter(name) if parameter is None else parameter).copy_(tensor)
            reset_states(self.codecs, plan, seed)
            return self.model
        own = set(filter(is_factor, self.trained_by(plan))) if any(map(is_factor, tensors)) else set()
        others = {name: tensor for name, tensor in tensors.items() if name not in own}
        apply(self.model_with(others), plan, seed, self.experiment.config.seed)
        self.plan, self.trained, self.codecs = plan, trained_parameters(self.model), codecs_of(self.model)
        with torch.no_grad():
            for name in own.intersection(tensors):
                self.trained[name].copy_(tensors[name])
        return self.model

    def trained_by(self, plan: Plan) -> list[str]:
        """Return the names of the tensors that a plan trains."""
        if plan not in self._trained:
            self._trained[plan] = list(trained_parameters(apply(self.model_with({}), plan)))
        return self._trained[plan]

    def start_of(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Return the initial values of trained tensors."""
        config = self.experiment.config
        return initial(names, self.experiment.start, config.update, config.seed)


def prepare(config: Config, side: int | None = None) -> Workspace:
    """Return a workspace for a config: data read and partitioned, the model initialised and pretrained.

    side: the size of decoded pictures in pixels, by default the preprocessing's. Also sets the process's number of threads.
    Raises ConfigError for settings that name something missing, or do not fit the data or the model.
    """
    check_names(config)
    use_threads(config.threads)
    given = config
    config, weights, preprocessing = resolved(config)
    source, dealt = read_data(config, side or preprocessing.resize)
    server, clients, parts = dealt.server, dealt.train, dealt.parts
    check_settings(given, clients.images.shape)
    config = with_clients(config, len(parts))
    if not is_picture(clients.images.shape):
        config = config.model_copy(update={"resolution": None})
    # Planning builds a whole batch, however few examples there are.
    if config.batch_size > (most := max(LARGE_BATCH, len(source.train))):
        raise ConfigError(f"--batch-size {config.batch_size} is more than {most:,}")
    with torch_seed(config.seed, Purpose.INITIAL_WEIGHTS):
        model = network(config, source.classes, clients.images.shape)
    if weights:
        key = weights_key(config)
        load_into(model, weights.tensors, getattr(config, key), key)
    check_network(config, model)
    preprocessing = fitted_preprocessing(config, model, preprocessing, server.images, source.classes)
    if config.weights == "pretrain":
        encoded = weights is not None and fills_encoder_alone(model, weights.tensors)
        pretrain(config, model, server, preprocessing, decoder_parts(model) if encoded else ())
    fit_head(config, model, server, preprocessing)
    chosen = stratified(
        server.labels, calibration_size(config, len(source.train)), generator(config.seed, Purpose.CALIBRATION)
    )
    calibration = server.take(chosen)
    start = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    model.to(config.device)
    experiment = Experiment(
        config, start, preprocessing, class_names(source), clients, parts, source.test, calibration,
        dealt.names, dealt.server_names, dealt.held_out,
    )  # fmt: skip
    return Workspace(experiment, model)


def with_clients(config: Config, clients: int) -> Config:
    """Return the config with the number of its clients; raises ConfigError where its budgets are for another."""
    listed = len(config.budget.sizes)
    if config.budget.shares is None and listed != clients:
        raise ConfigError(f"--budget lists {listed} budgets for {clients} clients")
    return config.model_copy(update={"clients": clients})


def prepare_with(config: Config, start: dict[str, Tensor], preprocessing: Preprocessing) -> Workspace:
    """Return a workspace for a client on a real device: the server's partition of the data, and its initial weights.

    config: complete, see ``Experiment``. start: the server's initial weights. The experiment has no test or calibration
    examples. Raises ConfigError as ``prepare`` does, and for the weights of another model.
    """
    check_names(config)
    use_threads(config.threads)
    source, dealt = read_data(config, preprocessing.resize)
    clients, parts = dealt.train, dealt.parts
    model = network(config, source.classes, clients.images.shape)
    state = model.state_dict()
    if {name: tensor.shape for name, tensor in state.items()} != {name: tensor.shape for name, tensor in start.items()}:
        raise ConfigError(f"the start is not that of {config.model} for {source.classes} classes")
    check_network(config, model)
    check_device_inputs(config, model, preprocessing, clients.images.shape, source.classes)
    model.to(config.device)
    nothing = clients.take(np.arange(0))
    names = class_names(source)
    experiment = Experiment(config, start, preprocessing, names, clients, parts, nothing, nothing, dealt.names)
    return Workspace(experiment, model)


_OPEN: dict[str, Workspace] = {}
"""The open workspace of this process, at most one, by the text that it was made from.

Flower's messages carry text alone: by it a server and its clients in one process, a Ray worker or a real device look up
their workspace here.
"""


def workspace_for(key: str, make: Callable[[], Workspace]) -> Workspace:
    """Return this process's workspace under a key; if it is not open, close any other and open what ``make`` returns."""
    if key not in _OPEN:
        workspace = make()
        _OPEN.clear()
        _OPEN[key] = workspace
    return _OPEN[key]


def workspace_of(config_json: str) -> Workspace:
    """Return this process's workspace for a config in JSON, shared by a server and clients in one process."""
    return workspace_for(config_json, lambda: prepare(Config.model_validate_json(config_json)))


def close_workspaces() -> None:
    """Close the open workspace, so that its model and data can be freed."""
    _OPEN.clear()
