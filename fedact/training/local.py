"""One client's local fine-tuning in plain PyTorch, with the bytes of its steps measured."""

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from math import fsum, sqrt

import numpy as np
import torch
from torch import Tensor, nn

from fedact.compression.method import owned
from fedact.config.plan import Plan
from fedact.measure.memory import Memory, stored_bytes
from fedact.models.micro_batch import Inputs, add_gradient
from fedact.models.sgd import Sgd
from fedact.models.tasks import Loss, task_loss
from fedact.nn.layers import LayerCodec
from fedact.nn.prefix.split import PrefixOutputs
from fedact.nn.surgery import trained_parameters
from fedact.training.recipe import Recipe
from fedact.training.step_bytes import Measured, StepBytes
from fedact.training.threads import threads_for


def copies_of(parameters: Sequence[Tensor]) -> list[Tensor]:
    """Return detached copies of the parameters."""
    return [parameter.detach().clone() for parameter in parameters]


@torch.no_grad()
def add_proximal_gradient(parameters: Sequence[Tensor], starts: Sequence[Tensor], mu: float) -> None:
    """Add mu * (w - start), the gradient of mu/2 * ||w - start||^2, to each parameter's gradient, in place.

    No temporary tensor is allocated, for no plan accounts for one. Source: FedProx, Li et al., MLSys 2020.
    """
    for parameter, start in zip(parameters, starts, strict=True):
        if parameter.grad is not None:
            parameter.grad.add_(parameter, alpha=mu).sub_(start, alpha=mu)


Batches = Callable[[np.ndarray], tuple[Inputs, Tensor]]
"""Returns the inputs and labels of the examples at these positions, ready for the model."""


@dataclass(frozen=True)
class LocalTraining:
    """One client's round of training: the mean loss over batches, and the bytes of its steps, one a micro-batch.

    Bytes are the maximum over all steps; ``_mean`` and ``_std`` are mean and standard deviation over them. copy_bytes: of
    the received weights that FedProx pulls to, kept beside all steps; no activation memory, and in no other figure.
    """

    loss: float
    steps: int
    saved_bytes: int
    saved_bytes_mean: float
    saved_bytes_std: float
    state_bytes: int
    peak_bytes: int
    paper_bytes: int
    paper_bytes_mean: float
    paper_bytes_std: float
    copy_bytes: int = 0


def _threads(x: Inputs) -> AbstractContextManager[None]:
    """Return ``threads_for`` a batch, of images or of prefix outputs."""
    return threads_for(x.values[0] if isinstance(x, PrefixOutputs) else x)


def micro_step(
    model: nn.Module,
    x: Inputs,
    y: Tensor,
    batch_examples: int,
    loss: Loss,
    optimizer: Sgd | None = None,
    clip_norm: float = float("inf"),
    before_clipping: Callable[[], None] | None = None,
) -> float:
    """Add a micro-batch's gradient, and with an optimizer, end the batch by clipping and a step; see ``add_gradient``.

    before_clipping: called before the gradients are clipped. Returns the micro-batch's share of the batch's loss.
    """
    with _threads(x):
        value = add_gradient(model, x, y, batch_examples, loss)
        if optimizer is not None:
            if before_clipping is not None:
                before_clipping()
            optimizer.step(clip_norm)
        return float(value.detach())


def train_locally(
    model: nn.Module,
    batches: Batches,
    examples: int,
    plan: Plan,
    recipe: Recipe,
    generator: np.random.Generator,
    loss: Loss = task_loss,
    measured: Measured | None = None,
    audited: Container[int] = (0,),
    trained: Sequence[nn.Parameter] | None = None,
    codecs: Mapping[str, LayerCodec] | None = None,
) -> LocalTraining:
    """Train a model that carries the plan, in place, and return its loss and bytes.

    The ledger follows steps of shapes that are not in ``measured``, which is extended, and those whose numbers, from 0, are
    in ``audited``; the bytes of the others are counted. Raises BudgetError when a step exceeds the plan's budget, or where
    ledger and count disagree. trained, codecs: the model's parameters to train and its codecs by layer, None to find them.
    """
    optimizer, pull, received = client_sgd(trained or list(trained_parameters(model).values()), recipe)
    steps, losses = StepBytes(model, plan, optimizer, {} if measured is None else measured, audited, codecs), list[float]()
    for chosen in epochs(examples, recipe, generator):
        total, (inputs, labels) = 0.0, batches(chosen)
        for start in range(0, len(chosen), plan.micro_batch):
            part, last = slice(start, start + plan.micro_batch), start + plan.micro_batch >= len(chosen)
            x, y = inputs[part], labels[part]
            if isinstance(x, Tensor):
                # A copy, so that a first layer that saves its input saves these images and not the whole batch.
                x = owned(x)
            with steps.step(x, y, last) as check:
                before = partial(_in_turn, check, pull)
                total += micro_step(model, x, y, len(chosen), loss, optimizer if last else None, recipe.clip_norm, before)
        losses.append(total)
        optimizer.zero_grad()
    return replace(_summary(losses, steps.memories), copy_bytes=stored_bytes(received))


def _in_turn(*actions: Callable[[], None]) -> None:
    for action in actions:
        action()


def client_sgd(parameters: Sequence[Tensor], recipe: Recipe) -> tuple[Sgd, Callable[[], None], list[Tensor]]:
    """Return a client's optimizer, what pulls its gradients before they are clipped, and the copies that it pulls to."""
    received = copies_of(parameters) if recipe.pull else []

    def pull() -> None:
        if recipe.pull:
            add_proximal_gradient(parameters, received, recipe.pull)

    return Sgd(parameters, recipe.lr, recipe.momentum, recipe.weight_decay), pull, received


def _summary(losses: list[float], memories: list[Memory]) -> LocalTraining:
    """Return the batches' losses and the steps' memories as one LocalTraining."""
    saved, state, peak, paper = (
        [getattr(memory, f"{name}_bytes") for memory in memories] for name in ("saved", "state", "peak", "paper")
    )
    (saved_mean, saved_std), (paper_mean, paper_std) = _mean_and_std(saved), _mean_and_std(paper)
    return LocalTraining(
        loss=float(np.mean(losses)),
        steps=len(memories),
        saved_bytes=max(saved),
        saved_bytes_mean=saved_mean,
        saved_bytes_std=saved_std,
        state_bytes=max(state),
        peak_bytes=max(peak),
        paper_bytes=max(paper),
        paper_bytes_mean=paper_mean,
        paper_bytes_std=paper_std,
    )


def _mean_and_std(values: list[int]) -> tuple[float, float]:
    """Return the mean and the standard deviation; numpy takes ten times as long for a few numbers."""
    mean = sum(values) / len(values)
    return mean, sqrt(fsum((value - mean) ** 2 for value in values) / len(values))


def epochs(examples: int, recipe: Recipe, generator: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield the positions of every batch, in a new random order each epoch."""
    for _ in range(recipe.local_epochs):
        order = generator.permutation(examples)
        yield from np.split(order, range(recipe.batch_size, examples, recipe.batch_size))
