"""A micro-batch's loss and backward pass, the same for clients, planner and bench."""

from torch import Tensor, nn

from fedact.models.tasks import Loss, loss_under, task_loss
from fedact.nn.prefix.split import PrefixOutputs
from fedact.nn.surgery import saves_less

Inputs = Tensor | PrefixOutputs
"""A batch's images, or the frozen prefix's outputs for them."""


def scores_of(model: nn.Module, x: Inputs) -> Tensor:
    """Return the model's output for a batch, from its images or from its prefix outputs."""
    return x.scores() if isinstance(x, PrefixOutputs) else model(x)


def add_gradient(model: nn.Module, x: Inputs, y: Tensor, batch_examples: int, loss: Loss = task_loss) -> Tensor:
    """Add a micro-batch's gradient to the parameters' gradients, and return its share of the batch's loss, a scalar.

    batch_examples: examples in the whole batch. The mean loss is weighted by this micro-batch's share of them, so that
    micro-batches of any size add up to the same gradient.
    """
    value: Tensor = loss_under(saves_less(model), loss)(scores_of(model, x), y) * (len(y) / batch_examples)
    value.backward()  # type: ignore[no-untyped-call]
    return value
