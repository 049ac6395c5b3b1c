"""Weights on disk: safetensors, whole or not at all, and looked at before they are used."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load as from_bytes
from safetensors.torch import save as as_bytes
from torch import Tensor

from fedact.config.errors import ConfigError
from fedact.storage.disk import make_folder, write_whole

__all__ = ["check_fit", "digest", "load", "load_like", "make_folder", "save"]


def save(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write the tensors; the file is never half-written."""
    make_folder(file.parent)
    write_whole(file, as_bytes({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}))


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Return a digest of tensors, 32 hexadecimal digits of SHA-256: it changes with every name, type, shape and bit.

    >>> import torch
    >>> digest({"a": torch.zeros(2), "b": torch.ones(1)}) == digest({"b": torch.ones(1), "a": torch.zeros(2)})
    True
    """
    result = hashlib.sha256()
    for name in sorted(tensors):
        array = tensors[name].detach().cpu().contiguous()
        result.update(f"{name} {array.dtype} {tuple(array.shape)} ".encode())
        result.update(array.numpy().tobytes())
    return result.hexdigest()[:32]


def load(file: Path) -> dict[str, Tensor]:
    """Return a file's tensors; raises ConfigError where it is missing or broken, or holds numbers that are not finite."""
    tensors = _read(file)
    _check_finite(tensors, file)
    return tensors


def load_like(file: Path, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a file's tensors in the order of ``like``.

    Raises ConfigError where they are not of its names, sizes and types, beside what ``load`` refuses.
    """
    tensors = _read(file)
    check_fit(tensors, like, f"checkpoint {file}")
    _check_finite(tensors, file)
    return {name: tensors[name] for name in like}


def _read(file: Path) -> dict[str, Tensor]:
    try:
        # Not mapped into memory: Windows would not let the file be replaced or removed as long as a tensor is used.
        return from_bytes(file.read_bytes())
    except Exception as error:  # whatever reading raises, the file is broken
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"checkpoint {file} cannot be read: {reason}") from None


def _check_finite(tensors: Mapping[str, Tensor], file: Path) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ConfigError(f"checkpoint {file} holds numbers that are not finite, in {name}")


def check_fit(tensors: Mapping[str, Tensor], like: Mapping[str, Tensor], what: str) -> None:
    """Raise ConfigError where the tensors have other names, sizes or types than those of ``like``."""
    if other := sorted(tensors.keys() ^ like.keys()):
        raise ConfigError(f"{what} is of another model or plan: it has too many or too few tensors, the first {other[0]}")
    for name, tensor in tensors.items():
        own = like[name]
        if (tensor.shape, tensor.dtype) != (own.shape, own.dtype):
            given, due = (f"{t.dtype} {tuple(t.shape)}" for t in (tensor, own))
            raise ConfigError(f"{what} is of another model or plan: {name} is {given}, not {due}")
