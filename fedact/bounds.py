"""Settings that must lie between bounds: the error says which one does not, and what is allowed."""

from math import isfinite

from fedact.errors import ConfigError


def within(what: str, name: str, value: float, least: float, most: float) -> None:
    """Raise ConfigError for a setting that does not lie between two bounds, both of them allowed."""
    if not least <= value <= most:
        raise ConfigError(f"{what}: {name} is at least {least:g} and at most {most:,g}, not {value:g}")


def above(what: str, name: str, value: float, most: float = float("inf")) -> None:
    """Raise ConfigError for a setting that is not positive, not finite or over a bound."""
    if not (0 < value <= most and isfinite(value)):
        bound = f" and at most {most:,g}" if isfinite(most) else ""
        raise ConfigError(f"{what}: {name} is above 0{bound}, not {value:g}")


def below_one(what: str, name: str, value: float) -> None:
    """Raise ConfigError for a setting that is no share below 1."""
    if not 0 <= value < 1:
        raise ConfigError(f"{what}: {name} is at least 0 and below 1, not {value:g}")
