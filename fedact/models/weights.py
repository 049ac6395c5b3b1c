"""A model's initial weights from files or torchvision, and the preprocessing that goes with them."""

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
from fedact.config.own_code import code_shown
from fedact.data import Preprocessing
from fedact.models import SEGMENTERS, SegmentationNetwork, encoder_of, imagenet_weights, to_model_layout
from fedact.models.mcunet import MCUNet
from fedact.models.timm_networks import fitted_positions, timm_weights
from fedact.nn.surgery import convolutions, head

HALF = (0.5, 0.5, 0.5)
MAX_PRINTED = 3
SMALLEST_SIDE, LARGEST_SIDE = 8, 2048


@dataclass(frozen=True, eq=False)
class Weights:
    """A state_dict, and the preprocessing of the images it was trained on."""

    tensors: dict[str, Tensor]
    preprocessing: Preprocessing


def plain_preprocessing(resolution: int) -> Preprocessing:
    """Return the preprocessing of networks without published weights: pixel values scaled to -1 to 1."""
    return Preprocessing(resolution, resolution, HALF, HALF)


def from_file(file: Path, resolution: int | None, usual: int = 224, key: str = "weights") -> Weights:
    """Return a safetensors or ``.pth`` file's weights; mean, std and resolution come from a safetensors file's metadata.

    resolution: overrides the file's. usual: for neither. key: the setting that named the file, for errors. Raises
    ConfigError for a missing or broken file.
    """
    flag = f"{as_flag(key)} {file}"
    if not file.is_file():
        raise ConfigError(f"{flag}: no such file; allowed are none, pretrain, imagenet or a .safetensors or .pth file")
    try:
        tensors, metadata = _read(file)
        preprocessing = _preprocessing(metadata, usual)
    except Exception as error:  # whatever reading raises, the file is broken: unpickling hostile bytes raises anything
        # Unpickling's messages are about its internals, or ask to let the file run code.
        message = str(error) if isinstance(error, (OSError, ValueError, RuntimeError, SafetensorError)) else ""
        reason = message.splitlines()[0] if message else "it is no file of tensors by name"
        raise ConfigError(f"{flag} cannot be read: {reason}") from None
    side = resolution or preprocessing.resolution
    return Weights(tensors, replace(preprocessing, resolution=side, resize=side))


def from_torchvision(model: str, resolution: int | None) -> Weights:
    """Return torchvision's ImageNet weights of a model and their preprocessing, downloaded where they are missing.

    For a segmentation network: those of its encoder's classifier. resolution: None for the published one. Raises
    ConfigError where there are none, or they cannot be downloaded.
    """
    try:
        weights = imagenet_weights(encoder_of(model) if model in SEGMENTERS else model)
    except ValueError:
        raise ConfigError(
            f"--weights imagenet: torchvision has none of {code_shown(model)}; name a file, or none or pretrain"
        ) from None
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


def from_timm(model: str, resolution: int | None) -> Weights:
    """Return timm's pretrained weights of a network and their preprocessing, downloaded where they are missing.

    resolution: None for the published one. Raises ConfigError where there are none, or they cannot be downloaded.
    """
    tensors, settings = timm_weights(model)
    side = resolution or settings["input_size"][-1]
    return Weights(tensors, Preprocessing(side, round(side / settings["crop_pct"]), settings["mean"], settings["std"]))


def load_into(model: nn.Module, tensors: dict[str, Tensor], source: str, key: str = "weights") -> None:
    """Load the tensors into the model, in place, except a head of another number of classes, which stays as initialised.

    A classifier's weights fill a segmentation network's encoder alone. source, key: where the weights come from, and the
    setting that says so, for errors. Raises ConfigError for the weights of another model, with the first that do not fit.
    """
    expected, flag = model.state_dict(), f"{as_flag(key)} {source}"
    if fills_encoder_alone(model, tensors):
        tensors, expected = model.encoder_weights(tensors), _of_encoder(model, expected)
    tensors = model.to_model_layout(tensors) if isinstance(model, MCUNet) else to_model_layout(model, tensors)
    tensors = fitted_positions(model, tensors)
    heads = tuple(f"{name}." for name in head(model) or convolutions(model)[-1:])
    strange = sorted(map(str, tensors.keys() ^ expected.keys()))
    misshapen = [name for name in expected.keys() & tensors.keys() if expected[name].shape != tensors[name].shape]
    strange += sorted(name for name in misshapen if not name.startswith(heads))
    if strange:
        first = ", ".join(strange[:MAX_PRINTED]) + (" ..." if len(strange) > MAX_PRINTED else "")
        raise ConfigError(f"{flag} belong to another model: {len(strange)} tensors do not fit ({first})")
    # Tensors that are not loaded are not read: with a strange shape they may be of any size.
    fitting = {name: tensor for name, tensor in tensors.items() if name not in misshapen}
    _check_numbers(fitting, expected, flag)
    fill(model, fitting)


def fills_encoder_alone(model: nn.Module, tensors: Mapping[str, Tensor]) -> TypeGuard[SegmentationNetwork]:
    """Tell whether the model is a segmentation network and the weights are a classifier's, for its encoder alone."""
    return isinstance(model, SegmentationNetwork) and not _of_encoder(model, tensors)


def _of_encoder(model: SegmentationNetwork, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names are in the network's encoder."""
    return {name: tensor for name, tensor in tensors.items() if str(name).startswith(f"{model.encoder_name}.")}


def fill(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load tensors into a model by name, in place; others are unchanged. Raises RuntimeError for what does not fit."""
    # A state_dict carries the version of its layout, which MNASNet requires; a plain mapping does not.
    state = model.state_dict()
    state.update(tensors)
    model.load_state_dict(state)


def _check_numbers(tensors: dict[str, Tensor], expected: dict[str, Tensor], flag: str) -> None:
    """Raise ConfigError for tensors that are not dense, finite and of the expected kind of number."""
    for name, tensor in tensors.items():
        plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
        if not plain or tensor.is_floating_point() != expected[name].is_floating_point() or tensor.is_complex():
            raise ConfigError(f"{flag} hold {tensor.dtype} in {name}, where there should be {expected[name].dtype}")
        if not tensor.isfinite().all():
            raise ConfigError(f"{flag} hold numbers that are not finite, in {name}")


def _read(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return a file's tensors and metadata by name; raises for a broken file."""
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
