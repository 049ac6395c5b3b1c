"""FedProx's pull of a client's weights back to what it received."""

from collections.abc import Sequence

import torch
from torch import Tensor


def starts_of(parameters: Sequence[Tensor]) -> list[Tensor]:
    """Return copies of the parameters as they are now."""
    return [parameter.detach().clone() for parameter in parameters]


@torch.no_grad()
def pull_back(parameters: Sequence[Tensor], starts: Sequence[Tensor], mu: float) -> None:
    """Add mu * (w - start), the gradient of mu/2 * ||w - start||^2, to each parameter's gradient, in place.

    Nothing is held meanwhile: a difference of its own would be memory that no plan has measured.
    """
    for parameter, start in zip(parameters, starts, strict=True):
        if parameter.grad is not None:
            parameter.grad.add_(parameter, alpha=mu).sub_(start, alpha=mu)
