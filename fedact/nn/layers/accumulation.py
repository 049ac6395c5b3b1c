"""Where a layer's backward pass may add to a parameter's gradient itself, in autograd's place."""

from typing import Any

import torch
from torch import Tensor

from fedact.torch_private import has_gradient_hooks, is_blind, post_accumulate_hooks, will_accumulate


def gradient_buffer(ctx: Any, place: int) -> Tensor | None:
    """Return the parameter's gradient, zeros where it had none, where autograd would do nothing but add to it.

    ctx: of a running backward pass; place: the parameter's, among the function's tensors. None where the gradient has to be
    returned: where it is asked for by ``torch.autograd.grad`` or a hook, with ``create_graph=True``, or for what is no leaf.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return None
    node, _ = ctx.next_functions[place]
    parameter = getattr(node, "variable", None)
    if not isinstance(parameter, Tensor) or has_gradient_hooks(parameter) or not parameter.is_contiguous():
        return None
    hooks = post_accumulate_hooks(parameter)
    if not all(map(is_blind, hooks)) or not will_accumulate(node):
        return None
    gradient = parameter.grad
    if gradient is None:
        gradient = parameter.grad = torch.zeros_like(parameter)
        for hook in hooks:
            hook(parameter)
    fits = gradient.layout is torch.strided and gradient.dtype == parameter.dtype and gradient.is_contiguous()
    return gradient if fits and not gradient.requires_grad else None


def release(ctx: Any) -> None:
    """Free what a function saved, in its backward pass, unless the graph is kept for another one."""
    if not torch.is_grad_enabled():
        ctx.maybe_clear_saved_tensors()
