"""Flower's arrays as tensors, and tensors as Flower's arrays."""

from collections.abc import Mapping
from io import BytesIO
from math import prod

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from numpy.lib.format import header_data_from_array_1_0, write_array_header_1_0
from torch import Tensor

MAGIC = b"\x93NUMPY\x01\x00"
"""How numpy's files of version 1 begin; the two bytes after it are the length of the description."""


def record_of(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    """Return the record that ``ArrayRecord`` makes of tensors, byte for byte, in one copy."""
    return ArrayRecord({name: _array(tensor.detach().cpu().numpy()) for name, tensor in tensors.items()})


def _array(values: np.ndarray) -> Array:
    if not values.flags.c_contiguous:
        return Array(values)
    header = BytesIO()
    write_array_header_1_0(header, header_data_from_array_1_0(values))
    data = b"".join((header.getvalue(), values.reshape(-1).view(np.uint8).data))
    return Array(str(values.dtype), values.shape, "numpy.ndarray", data)


Plain = dict[str, tuple[str, tuple[int, ...], str, np.ndarray]]
"""A record's arrays by name: type, shape, kind of serialization, and the bytes."""


def plain(record: ArrayRecord) -> Plain:
    """Return a record whose bytes can be sent beside the rest, or lie in a file."""
    return {
        name: (array.dtype, array.shape, array.stype, np.frombuffer(array.data, np.uint8)) for name, array in record.items()
    }


def record_from(plain: Plain) -> ArrayRecord:
    """Return the record again, whose arrays share the bytes."""
    record = ArrayRecord()
    for name, (dtype, shape, stype, content) in plain.items():
        array = Array(dtype, shape, stype, b"")
        # Flower takes nothing but bytes there, which nothing can share.
        array.data = content.data  # type: ignore[assignment]
        record[name] = array
    return record


def of_bytes(array: Array) -> Array:
    """Return an array whose data are bytes of its own, as Flower's own functions want it."""
    return Array(array.dtype, array.shape, array.stype, bytes(array.data))


def tensors_of(arrays: Mapping[str, Array], copy: bool = True) -> dict[str, Tensor]:
    """Return a record's arrays as tensors by name; copy: as in ``tensor_of``."""
    return {name: tensor_of(array, copy) for name, array in arrays.items()}


def tensor_of(array: Array, copy: bool = True) -> Tensor:
    """Return an array as a tensor; raises what numpy does where its bytes are no array.

    copy: if False, the tensor may share the array's bytes, and nobody may change it. numpy's reader evaluates every array's
    description as Python; one that is what numpy writes for this type and shape need not be read.
    """
    dtype, data = np.dtype(array.dtype), array.data
    if array.stype != "numpy.ndarray" or data[: len(MAGIC)] != MAGIC or dtype.hasobject:
        return torch.from_numpy(np.asarray(array.numpy()))
    begin = len(MAGIC) + 2
    end = begin + int.from_bytes(data[begin - 2 : begin], "little")
    description = f"{{'descr': {dtype.str!r}, 'fortran_order': False, 'shape': {tuple(array.shape)!r}, }}"
    if (
        bytes(data[begin:end]).decode("latin1").rstrip(" \n") != description
        or len(data) - end != prod(array.shape) * dtype.itemsize
    ):
        return torch.from_numpy(np.asarray(array.numpy()))
    values = np.frombuffer(data, dtype, offset=end).reshape(array.shape)
    return torch.from_numpy(values.copy() if copy else _changeable(values))


def _changeable(values: np.ndarray) -> np.ndarray:
    """Return an array that shares the values, as torch wants it: it knows no tensor that nobody may change."""
    return values if values.flags.writeable else np.asarray(_Changeable(values))


class _Changeable:
    """An array that says it may be changed; see NumPy's array interface."""

    def __init__(self, values: np.ndarray) -> None:
        interface = values.__array_interface__
        self.values, self.__array_interface__ = values, {**interface, "data": (interface["data"][0], False)}
