"""Values as bytes between a process and its own children; nothing here is ever read from a file of somebody's."""

import io
import mmap
import sys
from collections.abc import Callable, Iterable
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np

PROTOCOL = 5
"""The first that leaves arrays where they are and passes them beside the rest."""


def pack(value: Any, beside: Callable[[Any], object] | None = None) -> bytes:
    """Return a value as bytes; raises what pickling raises.

    Tensors on the CPU go by their numbers, in contiguous order, and read-only memory maps by their files' names.

    beside: takes each large buffer, a ``PickleBuffer``, that is then no part of the bytes.

    >>> unpack(pack({"a": [1, 2]}))
    {'a': [1, 2]}
    """
    content = io.BytesIO()
    _Pickler(content, PROTOCOL, True, beside).dump(value)
    return content.getvalue()


def unpack(content: bytes, buffers: Iterable[Any] = ()) -> Any:
    """Return the value; buffers: those that were passed beside it, in their order."""
    return ForkingPickler.loads(content, buffers=buffers)


class _Pickler(ForkingPickler):
    """Copies tensors, where torch would put them into shared memory that somebody has to clean up."""

    def reducer_override(self, value: Any) -> Any:
        if type(value) is np.memmap and isinstance(value.base, mmap.mmap) and value.filename and value.mode == "r":
            return _mapped, (str(value.filename), value.dtype.str, value.offset, value.shape)
        torch = sys.modules.get("torch")
        if torch is None or type(value) not in (torch.Tensor, torch.nn.Parameter) or value.device.type != "cpu":
            return NotImplemented
        flat = value.detach().contiguous().flatten().view(torch.uint8).numpy()
        return _tensor, (flat, str(value.dtype), tuple(value.shape), type(value) is torch.nn.Parameter, value.requires_grad)


def _tensor(flat: Any, dtype: str, shape: tuple[int, ...], parameter: bool, requires_grad: bool) -> Any:
    import torch

    value = torch.from_numpy(flat).view(getattr(torch, dtype.removeprefix("torch."))).reshape(shape)
    return torch.nn.Parameter(value, requires_grad) if parameter else value.requires_grad_(requires_grad)


def _mapped(file: str, dtype: str, offset: int, shape: tuple[int, ...]) -> "np.memmap[Any, Any]":
    return np.memmap(file, dtype, "r", offset, shape)
