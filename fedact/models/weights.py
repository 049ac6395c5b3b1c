"""A model's starting weights, and the preprocessing that goes with them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import TypeGuard

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from fedact.config.errors import ConfigError, as_flag
from fedact.data import Preprocessing
from fedact.models import SEGMENTERS, SegmentationNetwork, encoder_of, imagenet_weights, own_layout
from fedact.models.mcunet import MCUNet
from fedact.nn.surgery import convolutions, head

HALF = (0.5, 0.5, 0.5)
MOST_PRINTED = 3
SMALLEST_SIDE, LARGEST_SIDE = 8, 2048


@dataclass(frozen=True, eq=False)
class Weights:
    """A state_dict and the preprocessing its images had."""

    tensors: dict[str, Tensor]
    preprocessing: Preprocessing


def plain_preprocessing(resolution: int) -> Preprocessing:
    """Return the preprocessing of networks that fedact trains itself: every pixel from -1 to 1."""
    return Preprocessing(resolution, resolution, HALF, HALF)


def from_file(file: Path, resolution: int | None, usual: int = 224, key: str = "weights") -> Weights:
    """Return a safetensors or ``.pth`` file's weights; mean, std and resolution come from a safetensors file's metadata.

    Raises ConfigError for a missing or broken file. A given resolution overrides the file's; where there is neither, it is
    the usual one. key: the setting that named the file.
    """
    flag = f"{as_flag(key)} {file}"
    if not file.is_file():
        raise ConfigError(f"{flag}: no such file; allowed are none, pretrain, imagenet or a .safetensors or .pth file")
    try:
        tensors, metadata = _read(file)
        own = _preprocessing(metadata, usual)
    except Exception as error:  # whatever reading raises, the file is broken: unpickling hostile bytes raises anything
        # What unpickling says is of its own machinery, or a plea to let the file run code.
        told = str(error) if isinstance(error, (OSError, ValueError, RuntimeError, SafetensorError)) else ""
        reason = told.splitlines()[0] if told else "it is no file of tensors by name"
        raise ConfigError(f"{flag} cannot be read: {reason}") from None
    side = resolution or own.resolution
    return Weights(tensors, replace(own, resolution=side, resize=side))


def from_torchvision(model: str, resolution: int | None) -> Weights:
    """Return torchvision's ImageNet weights with their own preprocessing, downloaded where they are missing.

    A segmentation network's are those of the classifier that its encoder is from.
    """
    try:
        weights = imagenet_weights(encoder_of(model) if model in SEGMENTERS else model)
    except ValueError:
        raise ConfigError(f"--weights imagenet: torchvision has none of {model}; name a file, or none or pretrain") from None
    place = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rsplit("/", 1)[-1]
    try:
        tensors = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except Exception as error:  # no network, a wrong hash, or a broken file
        how = (
            f"{place} is broken ({error}): delete it" if place.exists() else f"there is no {place}, nor a download ({error})"
        )
        raise ConfigError(f"ImageNet weights: {how}; put {weights.url} at {place}") from None
    preset = weights.transforms()
    crop, resize = preset.crop_size[0], preset.resize_size[0]
    side = resolution or crop
    return Weights(tensors, Preprocessing(side, round(side * resize / crop), tuple(preset.mean), tuple(preset.std)))


def load_into(model: nn.Module, tensors: dict[str, Tensor], origin: str, key: str = "weights") -> None:
    """Load every tensor but a head made for other classes, which keeps the server's start.

    A segmentation network also takes the weights of a classifier with its encoder: all that is after it keeps its start.
    Raises ConfigError for the weights of another model, naming the first tensors that do not fit. origin, key: where they
    come from, and the setting that said so.
    """
    own, flag = model.state_dict(), f"{as_flag(key)} {origin}"
    if fills_encoder_alone(model, tensors):
        tensors, own = model.of_classifier(tensors), _of_encoder(model, own)
    tensors = model.own_layout(tensors) if isinstance(model, MCUNet) else own_layout(model, tensors)
    heads = tuple(f"{name}." for name in head(model) or convolutions(model)[-1:])
    strange = sorted(map(str, tensors.keys() ^ own.keys()))
    misshapen = [name for name in own.keys() & tensors.keys() if own[name].shape != tensors[name].shape]
    strange += sorted(name for name in misshapen if not name.startswith(heads))
    if strange:
        shown = ", ".join(strange[:MOST_PRINTED]) + (" ..." if len(strange) > MOST_PRINTED else "")
        raise ConfigError(f"{flag} belong to another model: {len(strange)} tensors do not fit ({shown})")
    # A tensor that is not loaded is not looked at: by its shape alone it may be of any size.
    fitting = {name: tensor for name, tensor in tensors.items() if name not in misshapen}
    _check_numbers(fitting, own, flag)
    fill(model, fitting)


def fills_encoder_alone(model: nn.Module, tensors: Mapping[str, Tensor]) -> TypeGuard[SegmentationNetwork]:
    """Tell whether weights are a classifier's, of which a segmentation network takes the encoder."""
    return isinstance(model, SegmentationNetwork) and not _of_encoder(model, tensors)


def _of_encoder(model: SegmentationNetwork, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return those tensors that are the encoder's by name."""
    return {name: tensor for name, tensor in tensors.items() if str(name).startswith(f"{model.encoder_name}.")}


def fill(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put tensors into a model by their names; what is not among them stays. Raises RuntimeError for what does not fit."""
    # MNASNet asks for the version of its layout, which goes with a model's own state_dict and with no plain mapping.
    own = model.state_dict()
    own.update(tensors)
    model.load_state_dict(own)


def _check_numbers(tensors: dict[str, Tensor], own: dict[str, Tensor], flag: str) -> None:
    """Raise ConfigError for tensors that are no plain numbers in memory, or not finite."""
    for name, tensor in tensors.items():
        plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
        if not plain or tensor.is_floating_point() != own[name].is_floating_point() or tensor.is_complex():
            raise ConfigError(f"{flag} hold {tensor.dtype} in {name}, where there should be {own[name].dtype}")
        if not tensor.isfinite().all():
            raise ConfigError(f"{flag} hold numbers that are not finite, in {name}")


def _read(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if file.suffix == ".safetensors":
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
    tensors = torch.load(file, map_location="cpu", weights_only=True)
    if not isinstance(tensors, dict) or not all(isinstance(k, str) and isinstance(t, Tensor) for k, t in tensors.items()):
        raise ValueError("it holds no state_dict")
    return tensors, {}


def _preprocessing(metadata: dict[str, str], usual: int) -> Preprocessing:
    mean, std = (_numbers(metadata.get(key), HALF) for key in ("mean", "std"))
    (side,) = _numbers(metadata.get("resolution"), (float(usual),))
    if not (len(mean) == len(std) == 3 and all(map(isfinite, (*mean, *std))) and min(std) > 0):
        raise ValueError(f"its metadata must hold three means and three positive stds, not {mean} and {std}")
    if side not in range(SMALLEST_SIDE, LARGEST_SIDE + 1):
        raise ValueError(f"its metadata's resolution must be a whole number from 8 to 2048, not {side:g}")
    return Preprocessing(int(side), int(side), mean, std)


def _numbers(text: str | None, default: tuple[float, ...]) -> tuple[float, ...]:
    if text is None:
        return default
    value = json.loads(text if text.lstrip().startswith("[") else f"[{text}]")
    return tuple(float(number) for number in value)
