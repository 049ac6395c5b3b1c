"""Runs the frozen part of a model on a few examples at a time, and the trained part on all of them."""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from fedact.compression.lowrank.algebra import memory_order
from fedact.nn.graph import structure
from fedact.nn.layers import Swapped
from fedact.nn.prefix.split import Split, split

_PREFIX = "_fedact_prefix"
ROUNDING = 1e-3
"""Convolutions of other batch sizes add up in another order; examples that mix differ by far more."""


class _Prefix:
    """How many examples at a time the frozen part is run on, the model's own class, and its parts as they last were."""

    def __init__(self, chunk: int, before: type[nn.Module]) -> None:
        self.chunk, self.before = chunk, before
        self.seen: Any = None
        self.cut: Split | None = None

    def __deepcopy__(self, _: Any) -> "_Prefix":
        return _Prefix(self.chunk, self.before)

    def split(self, model: nn.Module) -> Split | None:
        """Return the model in two; its parts are looked for again where it has changed."""
        now = structure(model), [parameter.requires_grad for parameter in model.parameters()]
        if now != self.seen:
            self.seen, self.cut = now, split(model)
        return self.cut


def put_in(model: nn.Module, chunk: int) -> None:
    """Let a model's frozen part run on ``chunk`` examples at a time where gradients are wanted; in place."""
    kind: Any = type(model)
    vars(model)[_PREFIX] = prefix = _Prefix(chunk, kind)
    model.__class__ = _chunked(kind)
    # Now, and not within the first step, which may be measured.
    prefix.split(model)


def take_out(model: nn.Module) -> None:
    """Let a model run at once again; another is left as it is."""
    if (prefix := vars(model).pop(_PREFIX, None)) is not None:
        model.__class__ = prefix.before


@cache
def _chunked(before: Any) -> Any:
    """Return a class of models that run in chunks where they can, and as ``before`` where not."""

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        split = _split_for(self, args, kwargs)
        outputs = None if split is None else in_chunks(split, args[0], vars(self)[_PREFIX].chunk)
        return before.forward(self, *args, **kwargs) if split is None or outputs is None else split.run_suffix(outputs)

    swapped = issubclass(before, Swapped)
    own = {"plain": before.plain if swapped else before, "forward": forward}
    return type(before.__name__, (before,) if swapped else (Swapped, before), own)


def _split_for(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Split | None:
    """Return the model in two where it is called with a batch of images, and gradients are wanted."""
    x, prefix = args[0] if args else None, vars(model)[_PREFIX]
    if len(args) != 1 or kwargs or not isinstance(x, Tensor) or x.dim() != 4:
        return None
    wanted = torch.is_grad_enabled() and not x.requires_grad and len(x) > 0
    return prefix.split(model) if wanted else None


@torch.no_grad()
def in_chunks(split: Split, x: Tensor, chunk: int) -> list[Tensor] | None:
    """Return the prefix's outputs for a whole batch, computed ``chunk`` examples at a time, each written into one tensor.

    None where they can't be: one does not hold an example after the other, or is another view of what another one holds.
    """
    wholes: list[Tensor] | None = None
    for start in range(0, len(x), chunk):
        part = x[start : start + chunk]
        # A part's values have no name here: they are gone when the next part's are made.
        wholes = _written(wholes, split.prefix(part), part, x, start)
        if wholes is None:
            return None
    return wholes


def examples_stand_alone(split: Split, x: Tensor) -> bool:
    """Tell whether the prefix makes the same of every example of a batch, to rounding, whether alone or among the others.

    x: at least two examples. No graph tells that of whatever code a model may have; what it does with examples, does.
    """
    alone, together = in_chunks(split, x, 1), split.prefix(x)
    if alone is None or len(x) < 2:
        return False
    pairs = zip(alone, together, strict=True)
    return all(float((a - b).norm()) <= ROUNDING * float(b.norm()) for a, b in pairs if b.is_floating_point())


def _written(
    wholes: list[Tensor] | None, values: tuple[Any, ...], part: Tensor, x: Tensor, start: int
) -> list[Tensor] | None:
    """Write a part's values into the whole ones, which the first part's make room for."""
    if not all(isinstance(value, Tensor) and value.shape[:1] == part.shape[:1] for value in values):
        return None
    wholes = _room_for(values, part, x) if wholes is None else wholes
    if wholes is None or any(value.shape[1:] != whole.shape[1:] for value, whole in zip(values, wholes, strict=True)):
        return None
    for value, whole in zip(values, wholes, strict=True):
        if whole is not x:
            whole[start : start + len(part)] = value
    return wholes


def _room_for(values: tuple[Tensor, ...], part: Tensor, x: Tensor) -> list[Tensor] | None:
    """Return a tensor for each value, the same one for the same value; the input's own for the input."""
    known = [(part, x)]
    for value in values:
        others = [(other, whole) for other, whole in known if _storage(other) == _storage(value)]
        # What is written into one view would have to show in the other.
        if any(_geometry(other) != _geometry(value) for other, _ in others):
            return None
        # In the same order in memory.
        shape, order = (len(x), *value.shape[1:]), memory_order(value)
        empty = None if others else torch.empty_permuted(shape, order, dtype=value.dtype, device=value.device)
        known.append((value, others[0][1] if empty is None else empty))
    return [whole for _, whole in known[1:]]


def _geometry(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
