"""Where a layer's backward pass may add to a parameter's gradient itself, in autograd's place."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedact.torch_private import has_gradient_hooks, is_blind, post_accumulate_hooks, will_accumulate


@dataclass(frozen=True, eq=False)
class ParameterGradient:
    """A parameter's gradient, to which autograd would do nothing but add."""

    parameter: Tensor

    @property
    def is_first(self) -> bool:
        """Whether there is no gradient yet. Of a saved weight one cannot tell: hooks may hand out another tensor."""
        return self.parameter.grad is None

    def tensor(self) -> Tensor:
        """Return the gradient, zeros where there was none."""
        if self.parameter.grad is None:
            self._set(torch.zeros_like(self.parameter))
        assert self.parameter.grad is not None
        return self.parameter.grad

    def add(self, gradient: Tensor) -> None:
        """Add a new tensor, or take it where there was none."""
        if self.parameter.grad is None and gradient.is_contiguous():
            self._set(gradient)
        else:
            self.tensor().add_(gradient)

    def _set(self, gradient: Tensor) -> None:
        self.parameter.grad = gradient
        for hook in post_accumulate_hooks(self.parameter):
            hook(self.parameter)


def parameter_gradient(ctx: Any, place: int) -> ParameterGradient | None:
    """Return a parameter's gradient where a backward pass may add to it in autograd's place.

    ctx: of the running pass; place: the parameter's, among the function's tensors. None where the gradient has to be
    returned: where it is asked for by ``torch.autograd.grad`` or a hook, with ``create_graph=True``, or for what is no leaf,
    and in a process group, whose hooks on gradients PyTorch does not show.
    """
    return parameter_gradients(ctx, [place])[0]


def parameter_gradients(ctx: Any, places: Sequence[int]) -> list[ParameterGradient | None]:
    """Return ``parameter_gradient`` at some places."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or _in_process_group():
        return [None] * len(places)
    functions = ctx.next_functions
    return [_of_leaf(functions[place][0]) for place in places]


def _of_leaf(node: Any) -> ParameterGradient | None:
    """Return the gradient of the leaf whose node of the graph this is, if it may be added to in autograd's place."""
    parameter = getattr(node, "variable", None)
    if not isinstance(parameter, Tensor) or has_gradient_hooks(parameter) or not parameter.is_contiguous():
        return None
    if not all(map(is_blind, post_accumulate_hooks(parameter))) or not will_accumulate(node):
        return None
    return ParameterGradient(parameter) if parameter.grad is None or _is_alike(parameter.grad, parameter) else None


def gradient_buffers(ctx: Any, places: Sequence[int]) -> list[Tensor | None]:
    """Return the tensors behind ``parameter_gradients``, zeros where there were none; None where there are none."""
    return [None if gradient is None else gradient.tensor() for gradient in parameter_gradients(ctx, places)]


def _in_process_group() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _is_alike(gradient: Tensor, parameter: Tensor) -> bool:
    """Tell whether a gradient is a plain tensor of the parameter's type."""
    plain = gradient.layout is torch.strided and gradient.is_contiguous() and not gradient.requires_grad
    return plain and gradient.dtype == parameter.dtype


def release(ctx: Any) -> None:
    """Free what a function saved, in its backward pass, unless the graph is kept for another one."""
    if not torch.is_grad_enabled():
        ctx.maybe_clear_saved_tensors()
