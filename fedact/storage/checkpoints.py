"""Weights on disk: safetensors, whole or not at all, and looked at before they are used."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load as from_bytes
from safetensors.torch import save as as_bytes
from torch import Tensor

from fedact.config.errors import ConfigError
from fedact.storage.disk import make_folder, write_whole

__all__ = ["check_fit", "digest", "load", "load_like", "make_folder", "save"]

DIGEST = "digest"
"""The key of a file's metadata; a file of another program's has none."""


def save(file: Path, tensors: Mapping[str, Tensor], private: bool = False) -> None:
    """Write the tensors with their digest; the file is never half-written.

    private: its owner alone may read it, and look into its folder.
    """
    make_folder(file.parent, private)
    written = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_whole(file, as_bytes(written, {DIGEST: digest(written)}), private)


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Return a digest of tensors, 32 hexadecimal digits of SHA-256: it changes with every name, type, shape and bit.

    >>> import torch
    >>> digest({"a": torch.zeros(2), "b": torch.ones(1)}) == digest({"b": torch.ones(1), "a": torch.zeros(2)})
    True
    """
    result = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu()
        result.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        # Of bytes: numpy does not know all types.
        result.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
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
        content = file.read_bytes()
        tensors, due = from_bytes(content), _metadata(content).get(DIGEST)
    except Exception as error:  # whatever reading raises, the file is broken
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"checkpoint {file} cannot be read: {reason}") from None
    if due not in (None, digest(tensors)):
        raise ConfigError(f"checkpoint {file} is broken: its tensors are not those that were written")
    return tensors


def _metadata(content: bytes) -> dict[str, str]:
    """Return what a safetensors file says beside its tensors: it begins with the length of a header in JSON."""
    length = int.from_bytes(content[:8], "little")
    return dict(json.loads(content[8 : 8 + length]).get("__metadata__") or {})


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
