"""Weights on disk: safetensors, whole or not at all."""

import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fedact.errors import ConfigError


def save(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write the tensors under another name first, so that the file is never half-written."""
    make_folder(file.parent)
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, temporary)
    temporary.replace(file)


def make_folder(folder: Path) -> None:
    """Make a folder; raises ConfigError where it cannot be made or written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be made: {error.strerror}") from None
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"{folder} may not be written to")


def load(file: Path) -> dict[str, Tensor]:
    """Return a file's tensors; raises ConfigError where it is missing or broken."""
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"checkpoint {file} cannot be read: {error}") from None
