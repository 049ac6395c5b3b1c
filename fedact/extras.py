"""What is installed only when asked for."""

from importlib.util import find_spec

from fedact.errors import ConfigError

EXTRAS = {
    "ray": ("ray",),
    "tensorboard": ("tensorboard",),
    "segmentation": ("segmentation_models_pytorch", "torchmetrics"),
}
"""The packages that each extra brings, as they are imported."""


def check_extra(extra: str, wanted_by: str) -> None:
    """Raise ConfigError where a package of an extra is not installed.

    wanted_by: what cannot do without it, as the error names it.
    """
    if not all(find_spec(package) for package in EXTRAS[extra]):
        raise ConfigError(f"{wanted_by} needs the extra {extra}, which is not installed: pip install -e '.[{extra}]'")
