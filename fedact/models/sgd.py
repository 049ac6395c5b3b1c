"""SGD in one pass over a client's parameters: clipping, weight decay, momentum and the update."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf

import torch
from torch import Tensor, nn
from torch.optim.sgd import sgd


@dataclass(eq=False)
class Sgd:
    """The update of ``torch.optim.SGD``, by torch's own kernel, with the clipping of ``clip_grad_norm_`` in the same pass.

    An optimizer class of torch loads torch's compiler with its first instance, 1.1 s in every process, and takes three
    times as long on the small layers of a client. state: as of a torch optimizer, each parameter's momentum buffer.

    >>> weight = torch.nn.Parameter(torch.zeros(2))
    >>> weight.grad = torch.tensor([3.0, 4.0])
    >>> Sgd([weight], lr=1.0).step(clip_norm=1.0)
    >>> weight.detach()
    tensor([-0.6000, -0.8000])
    """

    parameters: Sequence[Tensor]
    lr: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    state: dict[Tensor, dict[str, Tensor | None]] = field(default_factory=dict, init=False)

    def zero_grad(self) -> None:
        """Free the gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self, clip_norm: float = inf) -> None:
        """Update the parameters that have a gradient, after scaling all gradients so that their norm is at most clip_norm.

        The gradients are left as scaled.
        """
        updated: list[Tensor] = [parameter for parameter in self.parameters if parameter.grad is not None]
        gradients = [parameter.grad for parameter in updated if parameter.grad is not None]
        if not updated:
            return
        # The kernel divides every gradient by it, and reads it as float32 whatever the gradients are.
        scale = None if clip_norm == inf else (nn.utils.get_total_norm(gradients) / clip_norm).clamp_(min=1.0).float()
        buffers = [self.state.get(parameter, {}).get("momentum_buffer") for parameter in updated]
        sgd(
            updated, gradients, buffers, fused=True, grad_scale=scale, weight_decay=self.weight_decay,
            momentum=self.momentum, lr=self.lr, dampening=0.0, nesterov=False, maximize=False,
        )  # fmt: skip
        if self.momentum:
            self.state = {p: {"momentum_buffer": buffer} for p, buffer in zip(updated, buffers, strict=True)}
