"""Gradient checkpointing: a Sequential that saves its segments' inputs, and runs them again in the backward pass."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedact.config.errors import ConfigError
from fedact.nn.layers.base import Saving, has_weights
from fedact.nn.layers.compressed import CodecLayer
from fedact.nn.layers.function import apply, is_recorded, runs_plain
from fedact.torch_private import is_observed, raw_bytes, version


class _RunContext:
    """What a segment's result depends on beside its inputs: autocast, and the random generators where it draws numbers."""

    def __init__(self, device: torch.device) -> None:
        self.kind = device.type
        self.devices = [device] if device.type == "cuda" else []
        self.autocast = torch.is_autocast_enabled(self.kind), torch.get_autocast_dtype(self.kind)

    def random_states(self) -> tuple[Tensor, ...]:
        """Return copies of the generators' states."""
        return torch.random.get_rng_state(), *(torch.cuda.get_rng_state(cuda) for cuda in self.devices)

    def drawn_from(self, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return the states if numbers were drawn since: what running again needs; nothing otherwise."""
        # Not by an operation, which the ledger would count: a device need not look, its program says what draws numbers.
        unchanged = [*map(raw_bytes, states)] == [*map(raw_bytes, self.random_states())]
        return () if unchanged else tuple(state.clone() for state in states)

    def restored(self, states: tuple[Tensor, ...]) -> ExitStack:
        """Return a context manager with this context, and these states, in force; then the generators are as before."""
        enabled, dtype = self.autocast
        stack = ExitStack()
        stack.enter_context(torch.autocast(self.kind, dtype=dtype, enabled=enabled))
        if states:
            stack.enter_context(torch.random.fork_rng(devices=self.devices))
            torch.random.set_rng_state(states[0])
            for device, state in zip(self.devices, states[1:], strict=True):
                torch.cuda.set_rng_state(state, device)
        return stack


class _Recomputed(torch.autograd.Function):
    """y = segment(*inputs), saving the inputs alone; parameters are arguments so that autograd asks for their gradients.

    names: of the parameters that follow the inputs.
    """

    @staticmethod
    def forward(ctx: Any, segment: nn.Sequential, names: Sequence[str], *tensors: Tensor) -> Any:
        count = len(tensors) - len(names)
        inputs = tensors[:count]
        versions, before = [version(x) for x in inputs], _attributes(segment)
        ctx.context = _RunContext(inputs[0].device)
        states = ctx.context.random_states()
        y = segment(inputs if count > 1 else inputs[0])
        if [version(x) for x in inputs] != versions:
            raise ConfigError("checkpoint: a segment changes its input in place, so that it cannot run again")
        if kept := [name for name, place in _attributes(segment).items() if before.get(name) != place]:
            raise ConfigError(f"checkpoint: the tensor that a segment keeps as {kept[0]} would have no gradient: take exact")
        if not _are_tensors(y):
            raise ConfigError(f"checkpoint: a segment returns a {type(y).__name__}, neither a tensor nor a tuple of tensors")
        ctx.save_for_backward(*tensors, *ctx.context.drawn_from(states))
        ctx.segment, ctx.names, ctx.count = segment, names, count
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[2:]
        differentiable = torch.is_grad_enabled()
        tensors = [
            tensor if differentiable or place >= ctx.count else tensor.detach().requires_grad_(need)
            for place, (tensor, need) in enumerate(zip(ctx.saved_tensors[: len(needed)], needed, strict=True))
        ]
        inputs, parameters = tuple(tensors[: ctx.count]), tensors[ctx.count :]
        with torch.enable_grad(), ctx.context.restored(ctx.saved_tensors[len(needed) :]):
            y = _run_with(ctx.segment, ctx.names, parameters, inputs if ctx.count > 1 else inputs[0])
        outputs = y if isinstance(y, tuple) else (y,)
        pairs = [(y, g) for y, g in zip(outputs, grad_outputs, strict=True) if g is not None and y.requires_grad]
        ends, gradients = zip(*pairs, strict=True)
        sources = [tensor for tensor, need in zip(tensors, needed, strict=True) if need]
        results = iter(torch.autograd.grad(ends, sources, gradients, allow_unused=True, create_graph=differentiable))
        return None, None, *(next(results) if need else None for need in needed)


class RecomputedSequential(Saving, nn.Sequential):
    """A Sequential checkpointed in segments of ``segment`` trained children; those before the first of them run as usual."""

    plain: ClassVar[type[nn.Module]] = nn.Sequential
    segment: int = 1

    def __getitem__(self, index: Any) -> Any:
        part = super().__getitem__(index)
        if isinstance(index, slice):
            part.segment = self.segment
        return part

    def forward(self, x: Any) -> Any:
        return self._run(self.segments() if torch.is_grad_enabled() else [list(self)], x)

    def run_later_segments(self, x: Any) -> Any:
        """Return the model's output from the first segment's, which ends before the first trained layer."""
        return self._run(list(self.segments())[1:], x)

    def _run(self, segments: Iterable[list[nn.Module]], x: Any) -> Any:
        for segment in segments:
            run = nn.Sequential(*segment)
            inputs = x if isinstance(x, tuple) else (x,)
            parameters = dict(run.named_parameters())
            recomputed = _are_tensors(x) and is_recorded(*inputs, *parameters.values()) and not runs_plain()
            # A tensor that a hook gets hold of has to have its gradient.
            recomputed = recomputed and not any(is_observed(module) for child in segment for module in child.modules())
            x = apply(_Recomputed, run, list(parameters), *inputs, *parameters.values()) if recomputed else run(x)
        return x

    def segments(self) -> Iterator[list[nn.Module]]:
        """Yield the children before the first with a trained layer, then groups that hold ``segment`` children with one."""
        group: list[nn.Module] = []
        trained_children = 0
        for child in self:
            is_trained = any(isinstance(module, CodecLayer) and has_weights(module) for module in child.modules())
            if is_trained and trained_children in (0, self.segment):
                if group:
                    yield group
                group, trained_children = [], 0
            trained_children += is_trained
            group.append(child)
        yield group


def _attributes(segment: nn.Module) -> dict[str, int]:
    """Return the places of the tensors that are attributes of a segment's modules, alone or in a list, by name."""
    return {
        f"{type(module).__name__}.{name}/{number}": id(tensor)
        for module in segment.modules()
        for name, value in vars(module).items()
        for number, tensor in enumerate(value if isinstance(value, list | tuple) else (value,))
        if isinstance(tensor, Tensor)
    }


def _run_with(segment: nn.Sequential, names: Sequence[str], parameters: Sequence[Tensor], x: Any) -> Any:
    """Return the segment's output with these parameters, which were others' in a forward pass under ``functional_call``."""
    if all(now is then for now, then in zip(segment.parameters(), parameters, strict=True)):
        return segment(x)
    return functional_call(segment, dict(zip(names, parameters, strict=True)), (x,))


def _are_tensors(value: Any) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, tuple) and all(isinstance(item, Tensor) for item in value))
