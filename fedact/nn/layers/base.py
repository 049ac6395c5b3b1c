"""Base classes of the memory-saving layers, and the slope of a piecewise linear activation."""

from collections.abc import Callable, Sequence
from functools import cache, wraps
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from fedact.config.errors import ConfigError
from fedact.nn.layers.parts import part_of
from fedact.torch_private import InstanceNorm, hardtanh_backward, threshold_backward

if TYPE_CHECKING:
    from fedact.nn.layers.provenance import Provenance


CONVOLUTIONS = nn.Conv1d, nn.Conv2d
"""The convolutions that a method can train, of series and of pictures."""


class ChannelNorm(nn.LayerNorm):
    """``nn.LayerNorm`` over dimension 1 of (examples, channels, height, width)."""

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Swapped:
    """Base of all layers that surgery installs; ``plain`` is the class that ``restore`` puts back.

    chains: of each chain that it is a part of, the provenance of the tensors.
    """

    plain: ClassVar[type[nn.Module]]
    chains: "Sequence[Provenance]" = ()


def noted(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return the ``forward`` of a module that may be a part of chains: it notes where its output comes from.

    Of its arguments, the first is the input; any other one says that the output is to be written over it.
    """

    @wraps(forward)
    def run(self: Any, x: Tensor, *overwrites: bool) -> Tensor:
        if not self.chains:
            return forward(self, x, *overwrites)
        # A source notes its input while it runs; an operation in place makes another tensor of it.
        in_place = getattr(self, "inplace", False) or any(overwrites)
        before = [provenance.origin(x) for provenance in self.chains] if in_place else ()
        y = forward(self, x, *overwrites)
        origins = before or [provenance.origin(x) for provenance in self.chains]
        for provenance, origin in zip(self.chains, origins, strict=True):
            provenance.extend(origin, self, y)
        return y

    return run


class Saving(Swapped):
    """Base of the layers that save less through an autograd function of their own."""

    def __prepare_scriptable__(self) -> Any:
        """Refuse ``torch.jit.script``, which asks every module for what to compile in its place."""
        raise ConfigError("torch.jit.script compiles no memory-saving layers: fedact.restore(model) first")


def made_class(make: Callable[[Any], Any], base: Any, name: str, bases: tuple[Any, ...], **members: Any) -> Any:
    """Return a new class, what ``make(base)`` returns; its instances can be pickled, though no module has it by its name."""
    # The base may be such a class too.
    root, makers = vars(base).get("made_from", (base, ()))
    made_from = root, (*makers, make)

    def reduce(module: nn.Module, _: Any) -> tuple[Any, ...]:
        return _empty_instance, made_from, module.__getstate__()  # type: ignore[no-untyped-call]

    return type(name, bases, {"__reduce_ex__": reduce, "made_from": made_from, **members})


def _empty_instance(root: Any, makers: Sequence[Callable[[Any], Any]]) -> Any:
    """Return an instance, without attributes, of the class that ``makers`` make of a class, one after the other."""
    kind = root
    for make in makers:
        kind = make(kind)
    return kind.__new__(kind)


class FixedStatistics:
    """Base of the batch norms that surgery installs: their running statistics stay as they are."""

    def reset_running_stats(self) -> None:
        """Raise ConfigError: no later batch would make other statistics of what is reset."""
        raise ConfigError(
            "the running statistics of a compressed model's batch norms are fixed and cannot be estimated anew "
            "(torch.optim.swa_utils.update_bn): call fedact.restore(model) first"
        )


EXAMPLE_NORMS = nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, InstanceNorm
"""Norms that compute their statistics from each example, so that their gradient needs their input."""


def has_weights(module: nn.Module) -> bool:
    """Tell whether a module, or one in it, has parameters to train; of a norm of each example's, whether that was noted."""
    if isinstance(module, EXAMPLE_NORMS):
        part = part_of(module)
        return part is not None and part.keeps_input
    return any(True for _ in module.parameters())


@cache
def identity_class(plain: Any) -> Any:
    """Return a subclass whose forward returns its input, for a layer such as dropout that is switched off."""

    def forward(self: nn.Module, x: Any) -> Any:
        return x

    return made_class(identity_class, plain, f"No{plain.__name__}", (Swapped, plain), plain=plain, forward=forward)


NUMPYS = torch.float16, torch.float32, torch.float64
"""Types of numbers that numpy has too."""


class Slope(NamedTuple):
    """A piecewise linear activation's derivative: ``slope`` strictly between ``lower`` and ``upper``, 0 elsewhere."""

    lower: float
    upper: float
    slope: float = 1.0

    def passes(self, x: Tensor) -> Tensor:
        """Return the gradient's boolean mask, of x's shape; True at a NaN, as in PyTorch."""
        if self.upper == float("inf") and x.device.type == "cpu" and x.dtype in NUMPYS:
            # numpy's comparison is several times as fast as PyTorch's, whose gradient kernel needs memory for numbers.
            passes = torch.empty_like(x, dtype=torch.bool)
            fails = np.less_equal(x.detach().numpy(), self.lower, out=passes.numpy())
            np.logical_not(fails, out=fails)
            return passes
        return self.times(x.new_ones(1), x).bool()

    def times(self, grad_output: Tensor, x: Tensor) -> Tensor:
        """Return grad_output inside the interval, 0 outside, without the slope; x: the input, or (at slope 1) the output."""
        if self.upper == float("inf"):
            return threshold_backward(grad_output, x, self.lower)
        return hardtanh_backward(grad_output, x, self.lower, self.upper)
