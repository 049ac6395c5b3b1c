"""A trial: the server's own examples dealt to a few clients, who train as real ones do, judged on what was held out."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from math import sqrt

import numpy as np
import torch
from torch import Tensor, nn

from fedact.compression.exact import Exact
from fedact.config.errors import ConfigError
from fedact.config.schema import Config
from fedact.config.seeds import Purpose, generator
from fedact.config.spec import build
from fedact.data import Loader, center_crop
from fedact.data.partition import PARTITIONS, partition_examples
from fedact.data.partition.size_skew import Iid
from fedact.measure.step import Batch, prefix_outputs
from fedact.models.micro_batch import Inputs, scores_of
from fedact.models.sgd import Sgd
from fedact.models.tasks import TASKS, task_loss
from fedact.nn.prefix.split import PrefixOutputs
from fedact.nn.surgery import install, smooth_activations, trained_layers, trained_parameters
from fedact.training.averaging import RunningMean
from fedact.training.local import add_proximal_gradient, copies_of, epochs, micro_step
from fedact.training.recipe import recipe
from fedact.training.workspace import Workspace

CLIENTS, ROUNDS, FOLDS = 5, 3, 2
"""So many clients train for so many rounds; each example is held out in one of the folds, and trained on in the others."""
MOST_BATCHES = 5
"""A client of a trial has at most so many batches an epoch."""
TEMPERATURES = tuple(2.0 ** (power / 2) for power in range(-2, 9))
"""Scores are divided by the best of these before their loss is taken, so that it tells what was learned, not how loudly."""
WORST_LOSS = 1e3
"""The loss of what diverged."""
STABLE = 1.25
"""A step is too long where the first round's training loss is more than so many times that of a candidate before it."""
DOUBT = 1.0
"""A candidate is clearly better from so many standard errors of the paired difference of the examples' losses."""


@dataclass(frozen=True, eq=False)
class Fold:
    """Positions among the server's examples: each client's, which may share some, and those that are held out."""

    clients: tuple[np.ndarray, ...]
    held_out: np.ndarray


@dataclass(frozen=True, eq=False)
class Judgement:
    """A candidate after its trial; ``finished`` is False where it was ended early.

    first_loss: the mean loss of the clients' steps in the first round. losses: of every example after the last, while
    it was held out, at the best temperature; NaN where it was not judged. score: the accuracy on these.
    """

    layers: int
    lr: float
    first_loss: float
    losses: np.ndarray
    score: float
    finished: bool = True

    @property
    def loss(self) -> float:
        """The mean loss over the examples that were judged."""
        return float(np.nanmean(self.losses))


def clearly_better(one: Judgement, other: Judgement) -> bool:
    """Tell whether one's held-out loss is less than the other's by more than its standard error, example by example."""
    difference = one.losses - other.losses
    difference = difference[~np.isnan(difference)]
    return float(difference.mean()) < -DOUBT * float(difference.std(ddof=1)) / sqrt(len(difference))


class TrialFleet:
    """Trains candidates on the server's examples, with exact gradients; the workspace's model is changed."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace, experiment = workspace, workspace.experiment
        config = experiment.config
        loader = Loader(experiment.calibration, experiment.preprocessing, config.device)
        self.batch: Batch = center_crop(*loader(np.arange(len(loader))), config.crop)
        self.config = config.model_copy(update={"rounds": ROUNDS, "warmup_rounds": 0})
        self.at_once = TASKS[config.task].evaluation_batch
        each = min(int(np.median(experiment.parts.sizes()[0])), MOST_BATCHES * config.batch_size)
        self.folds = folds(config, experiment.calibration.labels, max(1, each))
        self._prefix: tuple[int, Inputs] | None = None

    def judge(self, layers: int, lr: float, rival: Judgement | None = None) -> Judgement:
        """Return how a number of trained convolutions does with a learning rate.

        rival: what it must beat. The trial ends early where the loss of its first steps is well above the rival's, for these
        are too long, or where its loss is after the first fold.
        """
        classes, prefix = len(self.workspace.experiment.classes), self._prefix_outputs(layers)
        count = TASKS[self.config.task].count(classes)
        scores, targets, first_losses = [], [], []
        for number, fold in enumerate(self.folds):
            first_loss, found = self._train(layers, lr, number, fold, prefix, rival)
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

    def _train(
        self, layers: int, lr: float, number: int, fold: Fold, prefix: Inputs, rival: Judgement | None
    ) -> tuple[float, Tensor | None]:
        """Return the first round's mean loss, and after the last round the model's output for the held-out examples.

        There is no output where the first round's loss is not stable beside the rival's.
        """
        model = self._installed(layers)
        parameters = trained_parameters(model)
        means = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        first: list[float] = []
        for round_number in range(1, ROUNDS + 1):
            settings, mean = recipe(self.config, round_number, lr), RunningMean()
            for client, own in enumerate(fold.clients):
                _load(parameters, means)
                weights = list(parameters.values())
                pull = partial(add_proximal_gradient, weights, copies_of(weights), settings.pull) if settings.pull else None
                optimizer = Sgd(weights, settings.lr, settings.momentum, settings.weight_decay)
                random = generator(self.config.seed, Purpose.TRIAL, round_number, 1 + number * CLIENTS + client)
                for chosen in epochs(len(own), settings, random):
                    x, y = self._examples(prefix, own[chosen])
                    loss = micro_step(model, x, y, len(y), task_loss, optimizer, settings.clip_norm, pull)
                    first += [loss] if round_number == 1 else []
                    optimizer.zero_grad()
                mean.add({name: parameter.detach() for name, parameter in parameters.items()}, len(own))
            first_loss = float(finite(np.array(first)).mean())
            # The head's loss alone is convex: long steps slow it, and do no lasting harm.
            if layers and rival is not None and first_loss > STABLE * rival.first_loss:
                return first_loss, None
            means = mean.over(means)
        _load(parameters, means)
        with torch.no_grad():
            parts = np.split(fold.held_out, range(self.at_once, len(fold.held_out), self.at_once))
            return first_loss, torch.cat([scores_of(model, self._examples(prefix, part)[0]) for part in parts])

    def _installed(self, layers: int) -> nn.Module:
        """Return the workspace's model, at its start, with exact gradients of so many convolutions and the head."""
        model, config = self.workspace.model_with({}), self.config
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


def folds(config: Config, labels: np.ndarray, each: int) -> list[Fold]:
    """Return the folds of a trial: each example is held out once, the others are dealt as the config deals clients theirs.

    labels: of the server's examples. each: how many examples a client has, on average; examples are repeated to make them.
    """
    random = generator(config.seed, Purpose.TRIAL)
    order = random.permutation(len(labels))
    fold_of = np.empty(len(labels), dtype=np.int64)
    # Class by class, so that folds have the same mix.
    fold_of[order[np.argsort(labels[order], kind="stable")]] = np.arange(len(labels)) % FOLDS
    rule, made = build("partition", PARTITIONS, config.partition), []
    for number in range(FOLDS):
        fit = np.flatnonzero(fold_of != number)
        pool = np.tile(fit, -(-CLIENTS * max(each, rule.min_partition_size) // len(fit)))
        try:
            parts = partition_examples(rule, labels[pool], CLIENTS, random)
        except ConfigError:
            # Some rules need more clients or classes than there are here.
            parts = partition_examples(Iid(min_partition_size=3), labels[pool], CLIENTS, random)
        made.append(Fold(tuple(pool[part] for part in parts), np.flatnonzero(fold_of == number)))
    return made


def tempered_losses(scores: Tensor, targets: Tensor) -> np.ndarray:
    """Return each example's loss, the scores divided by the temperature that makes the losses' mean the least.

    scores: (examples, ...), as the model's output. What is not finite has the loss ``WORST_LOSS``.
    """
    found = []
    for temperature in TEMPERATURES:
        pairs = zip(torch.split(scores / temperature, 1), torch.split(targets, 1), strict=True)
        losses = np.array([float(task_loss(one, target)) for one, target in pairs])
        found.append(finite(losses))
    best: np.ndarray = min(found, key=lambda losses: float(losses.mean()))
    return best


def finite(losses: np.ndarray) -> np.ndarray:
    """Return losses with ``WORST_LOSS`` in place of more, and of what is no number."""
    bounded: np.ndarray = np.minimum(np.nan_to_num(losses, nan=WORST_LOSS), WORST_LOSS)
    return bounded


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
