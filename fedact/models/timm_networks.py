"""timm's networks by name: ``--model timm:deit_tiny_patch16_224`` (extra ``timm``)."""

from typing import Any

from torch import Tensor, nn

from fedact.config.errors import ConfigError, check_extra, nearest
from fedact.models.classifiers import is_square

PREFIX = "timm:"
"""What a model's name begins with."""


def is_timm(name: str) -> bool:
    """Tell whether a model's name is one of timm's."""
    return name.startswith(PREFIX)


def check_timm_name(name: str) -> None:
    """Raise ConfigError where timm is not installed, or has no network of this name."""
    timm, known = _timm(name), name.removeprefix(PREFIX)
    if not timm.is_model(known):
        close = nearest(known, timm.list_models())
        raise ConfigError(f"unknown model {name!r}: timm {timm.__version__} has none of that name{close}")


def timm_network(name: str, classes: int, resolution: int | None = None) -> nn.Module:
    """Return one of timm's networks with random weights, for images of this many pixels a side where it has a size.

    Its ``head_name`` is what timm says. Raises ConfigError for an unknown name, or a size that it does not take.
    """
    check_timm_name(name)
    return _with_head(_made(name, num_classes=classes, **{} if resolution is None else {"img_size": resolution}))


def timm_weights(name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return timm's pretrained weights of a network, downloaded where they are missing, and its configuration.

    Raises ConfigError where timm has none, or they cannot be downloaded.
    """
    check_timm_name(name)
    try:
        model = _timm(name).create_model(name.removeprefix(PREFIX), pretrained=True)
    except Exception as error:  # no network, no such weights, or a broken file
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"--weights imagenet: timm's weights of {name} are neither in the cache of Hugging Face nor to be downloaded "
            f"({reason}); name a file, or none or pretrain"
        ) from None
    return model.state_dict(), dict(model.default_cfg)


def fitted_positions(model: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return weights with position embeddings for the size of a timm network's images, interpolated from another size."""
    own, given = getattr(model, "pos_embed", None), tensors.get("pos_embed")
    grid, others = getattr(getattr(model, "patch_embed", None), "grid_size", None), getattr(model, "num_prefix_tokens", 0)
    if not isinstance(own, Tensor) or given is None or grid is None or own.shape == given.shape:
        return tensors
    if given.shape[::2] != own.shape[::2] or not is_square(given.shape[1] - others):
        return tensors
    from timm.layers import resample_abs_pos_embed  # type: ignore[attr-defined]

    return {**tensors, "pos_embed": resample_abs_pos_embed(given, new_size=list(grid), num_prefix_tokens=others)}


def _timm(name: str) -> Any:
    check_extra("timm", f"--model {name}")
    import timm

    return timm


def _made(name: str, **settings: Any) -> nn.Module:
    """Return a network with these settings; the image size is left out where it has none."""
    try:
        model: nn.Module = _timm(name).create_model(name.removeprefix(PREFIX), **settings)
    except TypeError as error:
        if "img_size" not in str(error):
            raise ConfigError(f"--model {name} cannot be made: {error}") from None
        return _made(name, **{key: value for key, value in settings.items() if key != "img_size"})
    except (AssertionError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(
            f"--resolution {settings.get('img_size')}: {name} takes no images of that size: {reason}"
        ) from None
    return model


def _with_head(model: Any) -> nn.Module:
    """Return the network with the names of its head's layers in ``head_name``."""
    named = model.default_cfg.get("classifier")
    names = [named] if isinstance(named, str) else list(named or ())
    layers = dict(model.named_modules())
    found = [name for name in names if isinstance(layers.get(name), nn.Linear | nn.Conv1d | nn.Conv2d)]
    if found:
        model.head_name = tuple(found)
    return model  # type: ignore[no-any-return]
