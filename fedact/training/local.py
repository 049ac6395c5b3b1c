"""One client's local fine-tuning in plain PyTorch, with the bytes of its steps measured."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from fedact.compression.method import owned
from fedact.config.errors import BudgetError
from fedact.config.plan import Plan
from fedact.measure.memory import Memory, maximum_memory, measure_memory, stored_bytes
from fedact.models.micro_batch import Inputs, add_gradient
from fedact.models.sgd import Sgd
from fedact.models.tasks import Loss, task_loss
from fedact.nn.prefix.split import PrefixOutputs
from fedact.nn.surgery import trained_parameters
from fedact.training.frozen_prefix import BatchOutputs
from fedact.training.recipe import Recipe
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

Measured = dict[tuple[Plan, int, bool, bool], Memory]
"""Memory of micro-steps, by plan, number of examples, whether it is the batch's last, and whether methods had a state."""


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
    audited: bool = True,
) -> LocalTraining:
    """Train a model that carries the plan, in place, and return its loss and bytes.

    Steps are measured if their bytes depend on the data, or if none of their shape is in ``measured``, which is extended;
    with ``audited`` the first step always is. Raises BudgetError when a measured step exceeds the plan's budget.
    """
    known = {} if measured is None else measured
    parameters = list(trained_parameters(model).values())
    received = copies_of(parameters) if recipe.pull else []
    pull = partial(add_proximal_gradient, parameters, received, recipe.pull) if recipe.pull else None
    optimizer = Sgd(parameters, recipe.lr, recipe.momentum, recipe.weight_decay)
    losses: list[float] = []
    memories: list[Memory] = []
    for chosen in epochs(examples, recipe, generator):
        total, (inputs, labels) = 0.0, batches(chosen)
        for start in range(0, len(chosen), plan.micro_batch):
            part, last = slice(start, start + plan.micro_batch), start + plan.micro_batch >= len(chosen)
            x, y = inputs[part], labels[part]
            if isinstance(x, Tensor):
                # A copy, so that a first layer that saves its input saves these images and not the whole batch.
                x = owned(x)
            step = partial(micro_step, model, x, y, len(chosen), loss, optimizer if last else None, recipe.clip_norm, pull)
            # A method's first step has no state to start from, and may hold other bytes than later ones.
            shape = (plan, len(y), last, bool(memories and memories[0].state_bytes))
            if (memories or not audited) and plan.fixed and shape in known:
                total += step()
            else:
                with measure_memory(model, inputs=(x, y), optimizer=optimizer) as memory:
                    total += step()
                if isinstance(x, BatchOutputs):
                    memory.peak_bytes = max(memory.peak_bytes, x.peak_bytes())
                known[shape] = within_budget(memory, plan)
            memories.append(known[shape])
        losses.append(total)
        optimizer.zero_grad()
    return replace(_summary(losses, memories), copy_bytes=stored_bytes(received))


def _summary(losses: list[float], memories: list[Memory]) -> LocalTraining:
    """Return the batches' losses and the steps' memories as one LocalTraining."""
    most = maximum_memory(memories)
    saved, paper = (np.array([getattr(memory, name) for memory in memories]) for name in ("saved_bytes", "paper_bytes"))
    return LocalTraining(
        loss=float(np.mean(losses)),
        steps=len(memories),
        saved_bytes=most.saved_bytes,
        saved_bytes_mean=float(saved.mean()),
        saved_bytes_std=float(saved.std()),
        state_bytes=most.state_bytes,
        peak_bytes=most.peak_bytes,
        paper_bytes=most.paper_bytes,
        paper_bytes_mean=float(paper.mean()),
        paper_bytes_std=float(paper.std()),
    )


def bytes_in_scope(memory: Memory, scope: str) -> int:
    """Return the bytes that a budget of this scope limits: saved bytes for "saved", else peak bytes."""
    return memory.saved_bytes if scope == "saved" else memory.peak_bytes


def within_budget(memory: Memory, plan: Plan) -> Memory:
    """Return the memory; raise BudgetError where it exceeds the plan's budget, or has bytes that no hook recorded."""
    held = bytes_in_scope(memory, plan.scope)
    if plan.budget_bytes is not None and held > plan.budget_bytes:
        raise BudgetError(f"a step held {held:,} {plan.scope} bytes, over the budget of {plan.budget_bytes:,}")
    if memory.hidden_bytes:
        raise BudgetError(f"ledger and hooks disagree: {memory.hidden_bytes:,} bytes are held out of autograd's sight")
    return memory


def epochs(examples: int, recipe: Recipe, generator: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield the positions of every batch, in a new random order each epoch."""
    for _ in range(recipe.local_epochs):
        order = generator.permutation(examples)
        yield from np.split(order, range(recipe.batch_size, examples, recipe.batch_size))
