"""A trial: the server's own examples dealt to a few clients, who train as real ones do, judged on what was held out."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

import numpy as np
import torch
from torch import Tensor, nn

from fedact.compression.exact import Exact
from fedact.config.errors import ConfigError
from fedact.config.natural import natural_clients
from fedact.config.schema import Config
from fedact.config.seeds import Purpose, generator
from fedact.data import Loader, center_crop
from fedact.data.partition import make_partition, partition_examples
from fedact.data.partition.base import Parts
from fedact.data.partition.size_skew import Iid
from fedact.measure.step import Batch, prefix_outputs
from fedact.models.micro_batch import Inputs, scores_of
from fedact.models.tasks import TASKS, task_loss
from fedact.nn.adaptation import adapt
from fedact.nn.prefix.split import PrefixOutputs
from fedact.nn.surgery import install, smooth_activations, trained_layers, trained_parameters
from fedact.processes.pool import Workers
from fedact.processes.threads import one_thread
from fedact.training.averaging import RunningMean
from fedact.training.judgement import WORST_LOSS, Judgement, clearly_better, finite, tempered_losses
from fedact.training.local import client_sgd, epochs, micro_step
from fedact.training.recipe import recipe
from fedact.training.workspace import Workspace, workspace_of

CLIENTS, ROUNDS, FOLDS = 5, 3, 2
"""So many clients train for so many rounds; each example is held out in one of the folds, and trained on in the others."""
MOST_BATCHES = 5
"""A client of a trial has at most so many batches an epoch."""
FEWEST_OF_AN_OWNER = 3
"""Examples of a trial's client, at least."""
STABLE = 1.25
"""A step is too long where the first round's training loss is more than so many times that of a candidate before it."""


@dataclass(frozen=True, eq=False)
class Fold:
    """Positions among the server's examples: each client's, which may share some, and those that are held out."""

    clients: tuple[np.ndarray, ...]
    held_out: np.ndarray


@dataclass(frozen=True)
class FoldTask:
    """One fold of a candidate's trial.

    key: of the workspace, by which a process finds its own. most_loss: the first round's mean loss from which it ends early.
    """

    key: str
    layers: int
    lr: float
    number: int
    most_loss: float


class TrialFleet:
    """Trains candidates on the server's examples, with exact gradients; the workspace's model is changed.

    workers: train folds at the same time, each in a workspace that it finds by the key.
    """

    def __init__(self, workspace: Workspace, key: str = "", workers: Workers | None = None) -> None:
        self.workspace, experiment = workspace, workspace.experiment
        self.key, self.workers = key, workers or Workers(1)
        config = experiment.config
        loader = Loader(experiment.calibration, experiment.preprocessing, config.device)
        self.batch: Batch = center_crop(*loader(np.arange(len(loader))), config.crop)
        self.config = config.model_copy(update={"rounds": ROUNDS, "warmup_rounds": 0})
        self.at_once = TASKS[config.task].evaluation_batch
        # In its few rounds a client takes as many steps as one of the run in all of its rounds.
        each = ceil(float(np.median(experiment.parts.sizes()[0])) * config.rounds / ROUNDS)
        calibration = experiment.calibration
        self.folds = folds(config, calibration.labels, min(each, MOST_BATCHES * config.batch_size), calibration.clients)
        self._prefix: tuple[int, Inputs] | None = None

    def judge(self, layers: int, lr: float, rival: Judgement | None = None) -> Judgement:
        """Return how a number of trained convolutions does with a learning rate.

        rival: what it must beat. The trial ends early where the loss of its first steps is well above the rival's, for these
        are too long, or where its loss is after the first fold.
        """
        count = TASKS[self.config.task].count(len(self.workspace.experiment.classes))
        scores, targets, first_losses = [], [], []
        # The head's loss alone is convex: long steps slow it, and do no lasting harm.
        most_loss = STABLE * rival.first_loss if layers and rival is not None else float("inf")
        tasks = [FoldTask(self.key, layers, lr, number, most_loss) for number in range(FOLDS)]
        trained = map(self.train, tasks) if self.workers.count == 1 else self.workers.results(train_fold, tasks)
        for (number, fold), (first_loss, found) in zip(enumerate(self.folds), trained, strict=False):
            first_losses.append(first_loss)
            if found is None:
                return Judgement(layers, lr, first_loss, np.full(len(self.batch[1]), WORST_LOSS), 0.0, finished=False)
            scores.append(found)
            targets.append(self.batch[1][torch.from_numpy(fold.held_out)])
            count.add(scores[-1], targets[-1])
            first = self.folds[: number + 1]
            losses = np.full(len(self.batch[1]), np.nan)
            losses[np.concatenate([each.held_out for each in first])] = tempered_losses(
                torch.cat(scores), torch.cat(targets)
            )
            judged = Judgement(
                layers, lr, float(np.mean(first_losses)), losses, count.outcome().score or 0.0, finished=len(first) == FOLDS
            )
            if rival is not None and clearly_better(rival, judged):
                break
        return judged

    def train(self, task: FoldTask) -> tuple[float, Tensor | None]:
        """Return the first round's mean loss, and after the last round the model's output for the held-out examples.

        There is no output where the first round's loss is too high.
        """
        prefix, fold = self._prefix_outputs(task.layers), self.folds[task.number]
        model = self._installed(task.layers)
        parameters = trained_parameters(model)
        means = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        first: list[float] = []
        for round_number in range(1, ROUNDS + 1):
            settings, mean = recipe(self.config, round_number, task.lr), RunningMean()
            for client, own in enumerate(fold.clients):
                _load(parameters, means)
                weights = list(parameters.values())
                optimizer, pull, _ = client_sgd(weights, settings)
                random = generator(self.config.seed, Purpose.TRIAL, round_number, 1 + task.number * CLIENTS + client)
                for chosen in epochs(len(own), settings, random):
                    x, y = self._examples(prefix, own[chosen])
                    loss = micro_step(model, x, y, len(y), task_loss, optimizer, settings.clip_norm, pull)
                    first += [loss] if round_number == 1 else []
                    optimizer.zero_grad()
                mean.add({name: parameter.detach() for name, parameter in parameters.items()}, len(own))
            first_loss = float(finite(np.array(first)).mean())
            if first_loss > task.most_loss:
                return first_loss, None
            means = mean.over(means)
        _load(parameters, means)
        with torch.no_grad():
            parts = np.split(fold.held_out, range(self.at_once, len(fold.held_out), self.at_once))
            return first_loss, torch.cat([scores_of(model, self._examples(prefix, part)[0]) for part in parts])

    def _installed(self, layers: int) -> nn.Module:
        """Return the workspace's model, at its start, with exact gradients of so many convolutions and the head."""
        model, config = self.workspace.model_with({}), self.config
        adapt(model, layers, config.update, config.seed, config.train_norm)
        names = [*trained_layers(model, layers, config.train_norm), *smooth_activations(model)]
        return install(model, dict.fromkeys(names, Exact()))

    def _prefix_outputs(self, layers: int) -> Inputs:
        """Return the frozen prefix's outputs for all examples, once for all learning rates of a depth."""
        if self._prefix is None or self._prefix[0] != layers:
            self._prefix = layers, _all_outputs(self._installed(layers), self.batch[0], self.at_once)
        return self._prefix[1]

    def _examples(self, inputs: Inputs, positions: np.ndarray) -> tuple[Inputs, Tensor]:
        chosen = torch.from_numpy(positions)
        if isinstance(inputs, Tensor):
            return inputs[chosen], self.batch[1][chosen]
        part = PrefixOutputs(inputs.split, tuple(value[chosen] for value in inputs.values))
        return part.under(self.workspace.model), self.batch[1][chosen]


def train_fold(task: FoldTask) -> tuple[float, Tensor | None]:
    """Train a fold in this process's workspace; returns as ``TrialFleet.train``."""
    workspace = workspace_of(task.key)
    if workspace.trials is None:
        workspace.trials = TrialFleet(workspace)
    with one_thread():
        return workspace.trials.train(task)


def folds(config: Config, labels: np.ndarray, each: int, owners: np.ndarray | None = None) -> list[Fold]:
    """Return the folds of a trial: each example is held out once, the others are dealt as the config deals clients theirs.

    labels: of the server's examples. each: how many examples a client has, on average; examples are repeated to make them.
    owners: whose they are in a natural partition: then each of its clients is of one of the trial's.
    """
    random = generator(config.seed, Purpose.TRIAL)
    order = random.permutation(len(labels))
    fold_of = np.empty(len(labels), dtype=np.int64)
    # Class by class, so that folds have the same mix.
    fold_of[order[np.argsort(labels[order], kind="stable")]] = np.arange(len(labels)) % FOLDS
    natural, made = natural_clients(config.partition) is not None, []
    rule = Iid() if natural else make_partition(config.partition)
    for number in range(FOLDS):
        fit = np.flatnonzero(fold_of != number)
        pool = np.tile(fit, -(-CLIENTS * max(each, rule.min_partition_size) // len(fit)))
        try:
            if natural and owners is not None:
                parts = _by_owner(owners[pool], random)
            else:
                parts = partition_examples(rule, labels[pool], CLIENTS, random)
        except ConfigError:
            # Some rules need more clients or classes than there are here.
            parts = partition_examples(Iid(min_partition_size=3), labels[pool], CLIENTS, random)
        made.append(Fold(tuple(pool[part] for part in parts), np.flatnonzero(fold_of == number)))
    return made


def _by_owner(owners: np.ndarray, random: np.random.Generator) -> Parts:
    """Return each trial client's positions: all of some owners', as many owners for each; raises ConfigError for too few."""
    names, numbers = np.unique(owners, return_inverse=True)
    parts = Parts.by_owner(np.arange(len(owners)), (random.permutation(len(names)) % CLIENTS)[numbers], CLIENTS)
    if parts.sizes.min() < FEWEST_OF_AN_OWNER:
        raise ConfigError(f"{len(names)} clients are too few for a trial")
    return parts


def _load(parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])


def _all_outputs(model: nn.Module, x: Tensor, at_once: int) -> Inputs:
    """Return the prefix outputs of all images, or the images where the outputs are not one tensor row an example."""
    blocks = [prefix_outputs(model, part) for part in torch.split(x, at_once)]
    values = [block.values for block in blocks if isinstance(block, PrefixOutputs)]
    first = blocks[0]
    if isinstance(first, Tensor) or not all(isinstance(value, Tensor) for block in values for value in block):
        return x
    columns = [torch.cat(column) for column in zip(*values, strict=True)]
    return PrefixOutputs(first.split, tuple(columns)) if all(len(column) == len(x) for column in columns) else x
