"""Runs a model's frozen prefix a few examples at a time, or in tiles, and the suffix on the whole batch."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from fedact.compression.lowrank.algebra import memory_order
from fedact.nn.graph import named_modules, structure
from fedact.nn.layers import Swapped
from fedact.nn.layers.base import made_class
from fedact.nn.prefix.split import Split, split
from fedact.nn.prefix.tiles import TiledPrefix, check_tileable

Prefix = Callable[[Tensor], tuple[Any, ...]]
"""Returns a frozen prefix's outputs for images."""

_PREFIX = "_fedact_prefix"
ROUNDING = 1e-3
"""Relative tolerance: batch sizes change the order of a convolution's sums; dependent examples differ by far more."""


class _Prefix:
    """The state of a model that runs in chunks: examples at a time, tiles along each axis, and how its last split runs."""

    def __init__(self, chunk: int, tiles: int) -> None:
        self.chunk, self.tiles = chunk, tiles
        self.structure: Any = None
        self.last: TiledPrefix | None = None
        self.dimensions: tuple[int, ...] = ()

    def __reduce__(self) -> Any:
        return _Prefix, (self.chunk, self.tiles)

    def of(self, model: nn.Module) -> TiledPrefix | None:
        """Return the model's prefix, cached until its structure or its trainable parameters change; None where none is."""
        current = structure(model), [parameter.requires_grad for parameter in model.parameters()]
        if current != self.structure:
            parts = split(model)
            self.structure, self.last = current, None if parts is None else TiledPrefix(parts, self.tiles)
            self.dimensions = batch_dimensions(model)
        return self.last


def install(model: nn.Module, chunk: int, tiles: int = 0) -> None:
    """Run a model's frozen prefix ``chunk`` examples at a time when gradients are enabled, and in tiles; in place.

    chunk: 0 for the whole batch. tiles: along each axis, 0 for whole maps. Raises ConfigError where nothing can be tiled.
    """
    if not (chunk or tiles):
        return
    vars(model)[_PREFIX] = prefix = _Prefix(chunk, tiles)
    kind: Any = type(model)
    model.__class__ = _chunked(kind)
    # Trace now, and not in the first step, which may be measured.
    made = prefix.of(model)
    if tiles:
        check_tileable(made, tiles)


def restore(model: nn.Module) -> None:
    """Undo ``install``, in place; other models are left unchanged."""
    if vars(model).pop(_PREFIX, None) is not None and "before" in vars(type(model)):
        model.__class__ = vars(type(model))["before"]


@cache
def _chunked(before: Any) -> Any:
    """Return a subclass whose forward runs the prefix in chunks, or as ``before`` where that is not possible."""

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        prefix = _prefix_for(self, args, kwargs)
        outputs = None if prefix is None else in_chunks(prefix, args[0], vars(self)[_PREFIX].chunk)
        if prefix is None or outputs is None:
            return before.forward(self, *args, **kwargs)
        return prefix.split.run_suffix(outputs)

    swapped = issubclass(before, Swapped)
    plain, bases = (before.plain, (before,)) if swapped else (before, (Swapped, before))
    return made_class(_chunked, before, before.__name__, bases, plain=plain, before=before, forward=forward)


def _prefix_for(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> TiledPrefix | None:
    """Return the model's prefix for a call with one batch and gradients enabled, else None."""
    x, prefix = args[0] if args else None, vars(model)[_PREFIX]
    if len(args) != 1 or kwargs or not isinstance(x, Tensor):
        return None
    if not torch.is_grad_enabled() or x.requires_grad or not len(x):
        return None
    found = prefix.of(model)
    return found if x.dim() in prefix.dimensions else None


def batch_dimensions(model: nn.Module) -> tuple[int, ...]:
    """Return how many dimensions a batch may have: one of fewer might be a single example, which layers take too."""
    kinds = {type(module) for _, module in named_modules(model)}
    for kind, dimensions in ((nn.Conv2d, 4), (nn.Conv1d, 3)):
        if any(issubclass(each, kind) for each in kinds):
            return (dimensions,)
    return 3, 4


@torch.no_grad()
def in_chunks(prefix: Prefix, x: Tensor, chunk: int) -> list[Tensor] | None:
    """Return the prefix's outputs for a whole batch, computed ``chunk`` examples at a time, each written into one tensor.

    prefix: returns them for some images. chunk: 0 for the whole batch at once. None where an output is not indexed by
    example first, or is a different view of another output's memory.
    """
    if not chunk:
        return list(prefix(x))
    wholes: list[Tensor] | None = None
    for start in range(0, len(x), chunk):
        part = x[start : start + chunk]
        # The values have no name here, so that they are freed before the next part's are computed.
        wholes = _written(wholes, prefix(part), part, x, start)
        if wholes is None:
            return None
    return wholes


def examples_are_independent(split: Split, x: Tensor) -> bool:
    """Tell whether the prefix's output for an example is the same alone and in a batch, up to rounding.

    x: at least two examples. Measured by running the prefix, for a graph cannot decide it for arbitrary code.
    """
    alone, together = in_chunks(split.prefix, x, 1), split.prefix(x)
    if alone is None or len(x) < 2:
        return False
    pairs = zip(alone, together, strict=True)
    return all(float((a - b).norm()) <= ROUNDING * float(b.norm()) for a, b in pairs if b.is_floating_point())


def _written(
    wholes: list[Tensor] | None, values: tuple[Any, ...], part: Tensor, x: Tensor, start: int
) -> list[Tensor] | None:
    """Write a part's values into the whole tensors, allocated at the first part; None where shapes do not fit."""
    if not all(isinstance(value, Tensor) and value.shape[:1] == part.shape[:1] for value in values):
        return None
    wholes = _allocated(values, part, x) if wholes is None else wholes
    if wholes is None or any(value.shape[1:] != whole.shape[1:] for value, whole in zip(values, wholes, strict=True)):
        return None
    for value, whole in zip(values, wholes, strict=True):
        if whole is not x:
            whole[start : start + len(part)] = value
    return wholes


def _allocated(values: tuple[Tensor, ...], part: Tensor, x: Tensor) -> list[Tensor] | None:
    """Return empty tensors for the whole batch, one a distinct value, x itself for the input; None for overlapping views."""
    known = [(part, x)]
    for value in values:
        others = [(other, whole) for other, whole in known if _storage(other) == _storage(value)]
        # A write to one view would change the other.
        if any(_geometry(other) != _geometry(value) for other, _ in others):
            return None
        # Same order of dimensions in memory.
        shape, order = (len(x), *value.shape[1:]), memory_order(value)
        empty = None if others else torch.empty_permuted(shape, order, dtype=value.dtype, device=value.device)
        known.append((value, others[0][1] if empty is None else empty))
    return [whole for _, whole in known[1:]]


def _geometry(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
