"""A run's initial model: the network, its initial weights and their preprocessing, and the checks of both."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedact.config.code import check_almost_code, is_code
from fedact.config.errors import ConfigError
from fedact.config.hub import absolute_hub, is_hub
from fedact.config.own_code import digest_of
from fedact.config.paths import cache_folder
from fedact.config.schema import Config
from fedact.config.seeds import Purpose, generator, torch_seed
from fedact.data import VOID, Examples, Preprocessing
from fedact.data.kinds import is_picture
from fedact.models import (
    RESOLUTIONS,
    SCALABLE,
    SEGMENTERS,
    check_model_name,
    check_segmenter_name,
    make_model,
    make_segmenter,
)
from fedact.models.own import check_own, own_network
from fedact.models.pretraining import PretrainingRecipe, pretrained
from fedact.models.temporal import SERIES_MODELS
from fedact.models.timm_networks import is_timm
from fedact.models.weights import Weights, fill, from_file, from_timm, from_torchvision, plain_preprocessing
from fedact.nn.surgery import body_layers, head, trained_layers

SMALL_DATASETS = ("digits", "synthetic", "motion")
SMALL_WIDTH = 0.35
SMALL_RESOLUTION = 64
PRETRAINING_BATCH, MASKS_BATCH = 32, 8
"""Batch sizes of --weights pretrain: for labels, and for masks, whose images are larger."""


def check_model(config: Config) -> None:
    """Raise ConfigError for a model that the task does not have, or for settings of another model or other weights."""
    if is_code(config.model):
        check_own(config)
    elif config.task == "segmentation":
        check_segmenter_name(config.model)
    elif config.model in SEGMENTERS:
        raise ConfigError(f"--model {config.model} is for --task segmentation, not for --task {config.task}")
    else:
        check_almost_code(config.model, "--model")
        check_model_name(config.model)
    if config.model in SERIES_MODELS and config.weights == "imagenet":
        raise ConfigError(f"--weights imagenet is for pictures: {config.model} takes series")
    if config.width is not None and config.model not in SCALABLE:
        raise ConfigError(f"--width is for {', '.join(SCALABLE)}; {config.model} has one width")
    if config.pretrain_from != "none" and config.weights != "pretrain":
        raise ConfigError(f"--pretrain-from is for --weights pretrain, not for --weights {config.weights}")


def check_masks(config: Config) -> None:
    """Raise ConfigError for settings of masks where the task or the data set has none."""
    if config.partition_by != "class" and config.task != "segmentation":
        raise ConfigError(f"--partition-by {config.partition_by} is for --task segmentation, not for --task {config.task}")
    if config.void != VOID and (config.task, config.dataset) != ("segmentation", "folder"):
        raise ConfigError(
            f"--void {config.void} is for the masks of --task segmentation --dataset folder, not for "
            f"--task {config.task} --dataset {config.dataset}"
        )


def weights_key(config: Config) -> str:
    """Return the name of the setting that selects the initial weights."""
    return "pretrain_from" if config.weights == "pretrain" else "weights"


def network(config: Config, classes: int, images: tuple[int, ...]) -> nn.Module:
    """Return the config's network for this many classes, with random weights.

    images: the shape of the run's images (examples, ...), whose channels a network for series takes. Raises ConfigError for
    such a network where they are no series.
    """
    if is_code(config.model):
        model = own_network(config, classes)
    elif config.task == "segmentation":
        model = make_segmenter(config.model, classes)
    elif config.model in SERIES_MODELS:
        if is_picture(images) or len(images) != 3:
            raise ConfigError(
                f"--model {config.model} is for series (channels, steps): the examples of {config.data_name} have the shape "
                f"{images[1:]}"
            )
        model = make_model(config.model, classes, channels=images[1])
    else:
        model = make_model(config.model, classes, config.width, config.resolution)
    # A third faster on CPUs than the default layout.
    return model.to(memory_format=torch.channels_last)


def has_pictures_alone(config: Config) -> bool:
    """Tell, before any weights are there, whether all layers that a config's network may train take pictures."""
    if is_code(config.model) or config.model in SERIES_MODELS:
        return False
    with torch.device("meta"):
        model = network(config, 2, ())
    return all(isinstance(model.get_submodule(name), nn.Conv2d) for name in body_layers(model))


def resolved(config: Config) -> tuple[Config, Weights | None, Preprocessing]:
    """Return the complete config, the initial weights (None for none) and their preprocessing.

    Width, resolution and data folder are filled in from data set and weights; paths are absolute, so that a run can be
    resumed from any folder. Raises ConfigError for weights that cannot be read.
    """
    width = config.width
    if width is None and config.model in SCALABLE:
        width = SMALL_WIDTH if config.dataset in SMALL_DATASETS and config.weights == "pretrain" else 1.0
    filled: dict[str, Any] = {"width": width}
    if is_hub(config.dataset):
        filled["dataset"] = absolute_hub(config.dataset)
    elif config.dataset not in SMALL_DATASETS:
        filled["data_dir"] = config.data_path().absolute()
    key = weights_key(config)
    name = str(getattr(config, key))
    if name == "none":
        weights, preprocessing = None, plain_preprocessing(config.resolution or SMALL_RESOLUTION)
    elif name == "imagenet":
        find = from_timm if is_timm(config.model) else from_torchvision
        weights = find(config.model, config.resolution)
        preprocessing = weights.preprocessing
    else:
        file = Path(name)
        filled[key] = str(file.absolute())
        weights = from_file(file, config.resolution, RESOLUTIONS.get(config.model, 224), key)
        preprocessing = weights.preprocessing
    filled["resolution"] = preprocessing.resolution
    if config.task == "segmentation":
        # Scenes are not cropped.
        preprocessing = replace(preprocessing, resize=preprocessing.resolution, whole=True)
    return config.model_copy(update=filled), weights, preprocessing


def check_network(config: Config, model: nn.Module) -> None:
    """Raise ConfigError for more layers than the model has, a device that is not there, or head epochs without a head."""
    trained_layers(model, (0 if head(model) else 1) if config.layers == "auto" else config.layers)
    if config.device != "cpu" and torch.device(config.device).index not in (None, *range(torch.cuda.device_count())):
        raise ConfigError(f"--device {config.device}: there are {torch.cuda.device_count()} CUDA devices")
    if config.device != "cpu" and not torch.cuda.is_available():
        raise ConfigError(f"--device {config.device}: CUDA is not available here; allowed is cpu")
    if config.head_epochs and not head(model):
        raise ConfigError(f"--head-epochs {config.head_epochs}: {config.model} has no head of its own")


def decoder_parts(model: nn.Module) -> tuple[str, ...]:
    """Return the names of a segmentation network's children other than its encoder."""
    return tuple(name for name, _ in model.named_children() if name != getattr(model, "encoder_name", None))


def pretrain(
    config: Config, model: nn.Module, half: Examples, preprocessing: Preprocessing, only: tuple[str, ...] = ()
) -> None:
    """Train the model in place on the server's half of the data.

    only: names of the modules to train, empty for all. A pretrained encoder is better left out: a random decoder's first
    gradients would spoil it.
    """
    batch_size = PRETRAINING_BATCH if half.masks is None else MASKS_BATCH
    recipe = PretrainingRecipe(config.pretrain_epochs, batch_size, crop=config.crop, flip=config.flip, only=only)
    _fit(config, model, half, preprocessing, recipe)


def fit_head(config: Config, model: nn.Module, examples: Examples, preprocessing: Preprocessing) -> None:
    """Train the head alone, in place, on the server's examples for the config's ``head_epochs``."""
    if config.head_epochs:
        recipe = PretrainingRecipe(
            config.head_epochs, config.batch_size, config.usual_lr, config.momentum, config.weight_decay,
            crop=config.crop, flip=config.flip, only=tuple(head(model)),
        )  # fmt: skip
        _fit(config, model, examples, preprocessing, recipe)


def _fit(
    config: Config, model: nn.Module, examples: Examples, preprocessing: Preprocessing, recipe: PretrainingRecipe
) -> None:
    # Of code of the user's own by what it is, wherever it lies.
    what = digest_of(config, config.model) if is_code(config.model) else config.width
    name = f"{config.model_name} {what} {config.seed}"
    random = generator(config.seed, Purpose.PRETRAINING)
    # Dropout draws from torch's own generator.
    with torch_seed(config.seed, Purpose.PRETRAINING):
        fill(model, pretrained(model, name, examples, preprocessing, random, cache_folder() / "pretrained", recipe))
