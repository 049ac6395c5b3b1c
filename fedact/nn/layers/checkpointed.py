"""A Sequential whose children run again in the backward pass instead of keeping anything but their inputs."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fedact.config.errors import ConfigError
from fedact.nn.layers.base import Swapped, has_weights
from fedact.nn.layers.compressed import CodecLayer
from fedact.torch_private import version


class _Circumstances:
    """What a segment ran under, besides its input: the generators' states and autocast."""

    def __init__(self, device: torch.device) -> None:
        self.kind = device.type
        self.devices = [device] if device.type == "cuda" else []
        self.random = torch.random.get_rng_state()
        self.device_random = [torch.cuda.get_rng_state(each) for each in self.devices]
        self.autocast = torch.is_autocast_enabled(self.kind), torch.get_autocast_dtype(self.kind)

    def again(self) -> ExitStack:
        """Return a context in which the segment does what it did; the generators are put back after."""
        enabled, dtype = self.autocast
        stack = ExitStack()
        stack.enter_context(torch.random.fork_rng(devices=self.devices))
        stack.enter_context(torch.autocast(self.kind, dtype=dtype, enabled=enabled))
        torch.random.set_rng_state(self.random)
        for device, state in zip(self.devices, self.device_random, strict=True):
            torch.cuda.set_rng_state(state, device)
        return stack


class _Recomputed(torch.autograd.Function):
    """y = segment(*inputs) that keeps the inputs alone; the parameters are arguments so that their gradients have a way."""

    @staticmethod
    def forward(ctx: Any, segment: nn.Sequential, count: int, *tensors: Tensor) -> Any:
        inputs = tensors[:count]
        versions = [version(x) for x in inputs]
        ctx.circumstances = _Circumstances(inputs[0].device)
        y = segment(inputs if count > 1 else inputs[0])
        if [version(x) for x in inputs] != versions:
            raise ConfigError("checkpoint: a segment changes its input in place, so that it cannot run again")
        if not _are_tensors(y):
            raise ConfigError(f"checkpoint: a segment returns a {type(y).__name__}, neither a tensor nor a tuple of tensors")
        ctx.save_for_backward(*tensors)
        ctx.segment, ctx.count = segment, count
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[2:]
        tensors = [
            tensor.detach().requires_grad_(need) if place < ctx.count else tensor
            for place, (tensor, need) in enumerate(zip(ctx.saved_tensors, needed, strict=True))
        ]
        inputs = tuple(tensors[: ctx.count])
        with torch.enable_grad(), ctx.circumstances.again():
            y = ctx.segment(inputs if ctx.count > 1 else inputs[0])
        outputs = y if isinstance(y, tuple) else (y,)
        pairs = [(y, g) for y, g in zip(outputs, grad_outputs, strict=True) if g is not None and y.requires_grad]
        wanted = [tensor for tensor, need in zip(tensors, needed, strict=True) if need]
        reached, gradients = zip(*pairs, strict=True)
        found = iter(torch.autograd.grad(reached, wanted, gradients, allow_unused=True))
        return None, None, *(next(found) if need else None for need in needed)


class RecomputedSequential(Swapped, nn.Sequential):
    """A Sequential in segments, each kept as its input; what comes before the first trained layer runs as ever."""

    plain: ClassVar[type[nn.Module]] = nn.Sequential
    segment: int

    def forward(self, x: Any) -> Any:
        return self._run(self.segments() if torch.is_grad_enabled() else [list(self)], x)

    def run_later_segments(self, x: Any) -> Any:
        """Return the output of all segments but the first, for that one's output; it ends before the first trained layer."""
        return self._run(list(self.segments())[1:], x)

    def _run(self, segments: Iterable[list[nn.Module]], x: Any) -> Any:
        for segment in segments:
            run = nn.Sequential(*segment)
            inputs = x if isinstance(x, tuple) else (x,)
            parameters = [parameter for parameter in run.parameters() if parameter.requires_grad]
            passed = parameters or any(getattr(tensor, "requires_grad", False) for tensor in inputs)
            recomputed = torch.is_grad_enabled() and passed and _are_tensors(x)
            x = _Recomputed.apply(run, len(inputs), *inputs, *parameters) if recomputed else run(x)
        return x

    def segments(self) -> Iterator[list[nn.Module]]:
        """Yield the children before the first with a trained layer, then groups of ``segment`` such and what follows."""
        group: list[nn.Module] = []
        keeping = 0
        for child in self:
            keeps = any(isinstance(module, CodecLayer) and has_weights(module) for module in child.modules())
            if keeps and keeping in (0, self.segment):
                if group:
                    yield group
                group, keeping = [], 0
            keeping += keeps
            group.append(child)
        yield group


def _are_tensors(value: Any) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, tuple) and all(isinstance(item, Tensor) for item in value))
