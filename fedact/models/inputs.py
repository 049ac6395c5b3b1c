"""What goes into a network: the preprocessing of a run's examples, and the check that the network takes them."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from fedact.config.code import is_code
from fedact.config.errors import ConfigError
from fedact.config.schema import Config
from fedact.data import Images, Preprocessing
from fedact.data.kinds import GREY, is_picture
from fedact.data.standardization import standardized
from fedact.models.temporal import SERIES_MODELS


def check_settings(config: Config, images: tuple[int, ...]) -> None:
    """Raise ConfigError for settings of pictures where the images, of this shape (examples, ...), are series."""
    given = {"--resolution": config.resolution, "--crop": config.crop, "--flip": config.flip or None}
    for flag, value in given.items():
        if value is not None and not is_picture(images):
            text = flag if value is True else f"{flag} {value}"
            hint = "; grey pictures of floats have a last dimension of 1" if len(images) == 3 else ""
            series = f"the examples of {config.data_name} are series of shape {images[1:]}"
            raise ConfigError(f"{text} is for pictures: {series}{hint}")


def fitted_preprocessing(
    config: Config, model: nn.Module, preprocessing: Preprocessing, server: Images, classes: int
) -> Preprocessing:
    """Return the preprocessing of a run's examples for a network: of their range, and of as many channels as it takes.

    server: the server's images. Grey pictures have one channel where the network takes no three. Raises ConfigError where
    the network fails on inputs of that shape, or says something else than a score for each class.
    """
    fitted = standardized(preprocessing, server)
    shape = fitted.input_shape(server.shape)
    if is_picture(server.shape) and server.shape[-1] == GREY and _failure(model, shape) is not None:
        grey = replace(fitted, mean=fitted.mean[:1], std=fitted.std[:1])
        fitted = grey if _failure(model, grey.input_shape(server.shape)) is None else fitted
    check_inputs(config, model, fitted, server.shape, classes)
    return fitted


def check_device_inputs(
    config: Config, model: nn.Module, preprocessing: Preprocessing, images: tuple[int, ...], classes: int
) -> None:
    """Raise ConfigError where a device's images, of this shape, are not what the server's preprocessing is for."""
    known = len(preprocessing.mean)
    if (images[-1] not in (GREY, known)) if is_picture(images) else images[1] != known:
        raise ConfigError(f"{config.data_name} has images of shape {images[1:]} here, and {known} channels on the server")
    check_inputs(config, model, preprocessing, images, classes)


def check_inputs(
    config: Config, model: nn.Module, preprocessing: Preprocessing, images: tuple[int, ...], classes: int
) -> None:
    """Raise ConfigError for crops larger than the images, or where the model fails on inputs or crops of their size.

    images: their shape (examples, ...).
    """
    if is_code(config.model):
        _check_own(config.model_name, model, preprocessing.input_shape(images), classes)
    shape, pictures = preprocessing.input_shape(images), is_picture(images)
    hint = f"; {config.data_name} has grey pictures {images[1:3]}: series are floats" if images[-1] == GREY else ""
    if config.crop is not None and config.crop > min(shape[1:]):
        raise ConfigError(f"--crop {config.crop} is more than the {min(shape[1:])} pixels of an image's shorter side")
    cropped = shape if config.crop is None else (shape[0], config.crop, config.crop)
    for each in {shape, cropped}:
        if (reason := _failure(model, each, None if config.task == "segmentation" else classes)) is None:
            continue
        if not pictures:
            others = f"{', '.join(SERIES_MODELS)} takes series (--model), and so may a network of your own"
            raise ConfigError(
                f"{config.model_name} takes no series of shape {shape}, as {config.data_name} has; {others}: {reason}"
            )
        setting = f"--crop {config.crop}" if each[1] == config.crop else f"--resolution {config.resolution}"
        raise ConfigError(f"{setting}: {config.model_name} takes no images of that size: {reason}{hint}")


def _check_own(name: str, model: nn.Module, shape: tuple[int, ...], classes: int) -> None:
    """Raise ConfigError where a network of one's own takes one example but no batch, or scores without a gradient."""
    if _failure(model, shape) is not None:
        return
    given = {}
    for count in (1, 2):
        x = torch.zeros(count, *shape, requires_grad=True) * 1  # no leaf: it may be written to
        try:
            given[count] = model.eval()(x)
        except Exception as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise ConfigError(f"{name} takes one example, but no batch of {count}: {reason}") from None
    for count, scores in given.items():
        if not isinstance(scores, Tensor) or scores.shape != (count, classes):
            what = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            examples = "one example" if count == 1 else "two examples"
            raise ConfigError(f"{name}: for {examples} it gives {what}, not a score for each class: ({count}, {classes})")
    if not given[2].requires_grad:
        raise ConfigError(
            f"{name} gives scores without a gradient, so nothing is learned: its forward cuts it off (detach, torch.no_grad)"
        )


def _failure(model: nn.Module, shape: tuple[int, ...], classes: int | None = None) -> str | None:
    """Return why the model does not take an input of this shape, in one line, None where it does.

    classes: how many scores it must give; None where it need not.
    """
    try:
        with torch.no_grad():
            scores = model.eval()(torch.zeros(1, *shape))
    except Exception as error:  # whatever a stranger's network raises
        return (str(error) or type(error).__name__).splitlines()[0]
    if classes is not None and not (isinstance(scores, Tensor) and scores.shape == (1, classes)):
        given = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        return f"for one example it gives {given}, not a score for each class: (1, {classes})"
    return None
