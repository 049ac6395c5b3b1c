"""A Sequential whose children run again in the backward pass instead of keeping anything but their inputs."""

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fedact.errors import ConfigError


class _Recomputed(torch.autograd.Function):
    """y = segment(x) that keeps x alone; the parameters are arguments so that their gradients have a place to go."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, segment: nn.Sequential, *parameters: Tensor) -> Tensor:
        version = x._version
        y: Tensor = segment(x)
        if x._version != version:
            raise ConfigError("checkpoint: a segment changes its input in place, so that it cannot run again")
        ctx.save_for_backward(x, *parameters)
        ctx.segment = segment
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        x, *parameters = ctx.saved_tensors
        x = x.detach().requires_grad_(ctx.needs_input_grad[0])
        with torch.enable_grad():
            y = ctx.segment(x)
        wanted = [tensor for tensor in (x, *parameters) if tensor.requires_grad]
        found = iter(torch.autograd.grad(y, wanted, grad_output, allow_unused=True))
        gradients = [next(found) if tensor.requires_grad else None for tensor in (x, *parameters)]
        return gradients[0], None, *gradients[1:]


class RecomputedSequential(nn.Sequential):
    """A Sequential in segments, each kept as its input; what comes before the first trained layer runs as ever."""

    plain: ClassVar[type[nn.Module]] = nn.Sequential
    segment: int

    def forward(self, x: Tensor) -> Tensor:
        for segment in self._segments() if torch.is_grad_enabled() else [list(self)]:
            run = nn.Sequential(*segment)
            parameters = [parameter for parameter in run.parameters() if parameter.requires_grad]
            needed = torch.is_grad_enabled() and (parameters or x.requires_grad)
            x = _Recomputed.apply(x, run, *parameters) if needed else run(x)
        return x

    def _segments(self) -> Iterator[list[nn.Module]]:
        """Yield the children in groups of ``segment`` that have weights, each with the others that follow it."""
        group: list[nn.Module] = []
        for child in self:
            weighted = any(True for _ in child.parameters())
            if weighted and sum(any(True for _ in one.parameters()) for one in group) == self.segment:
                yield group
                group = []
            group.append(child)
        yield group
