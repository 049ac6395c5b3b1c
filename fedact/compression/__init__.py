"""The methods: codecs for activations saved between the forward and the backward pass."""

from collections.abc import Iterable
from dataclasses import fields, replace
from typing import Any

from fedact.compression.conduct import check_conduct
from fedact.compression.division import Division
from fedact.compression.exact import Checkpoint, Exact, Vanilla
from fedact.compression.gradient_filter import GradientFilter
from fedact.compression.lowrank.asi import ASI
from fedact.compression.lowrank.hooi import Tucker
from fedact.compression.lowrank.hosvd import HOSVD
from fedact.compression.lowrank.lance import LANCE
from fedact.compression.lowrank.svd import SVD, ChannelSVD
from fedact.compression.method import NO_STATE, PICTURES, SERIES, Compressed, Method, State, Sweep, Traits, shape_of
from fedact.compression.own import build_own, installed_class, installed_names, own_class, own_name
from fedact.compression.quantize import Quantize
from fedact.compression.random_projection import RandomProjection
from fedact.compression.topk import TopK
from fedact.compression.transform.transform import Transform
from fedact.config import spec
from fedact.config.code import code_label, is_code
from fedact.config.errors import ConfigError, unknown
from fedact.config.spec import settings

METHODS: dict[str, type[Method]] = {
    "vanilla": Vanilla,
    "exact": Exact,
    "checkpoint": Checkpoint,
    "hosvd": HOSVD,
    "tucker": Tucker,
    "svd": SVD,
    "channel_svd": ChannelSVD,
    "asi": ASI,
    "lance": LANCE,
    "gradient_filter": GradientFilter,
    "quantize": Quantize,
    "transform": Transform,
    "division": Division,
    "topk": TopK,
    "random_projection": RandomProjection,
}
"""The one table of methods; to add one, write its file and its line."""

AUTO = "auto"
"""The name that lets a plan mix methods, tensor by tensor."""


def make_method(text: str | Method, check: bool = True) -> Method:
    """Return the codec that ``NAME:key=value,...`` names; a codec is returned as it is.

    The name may be ``FILE.py:NAME`` or ``package.module:NAME``, a class of your own, whose code is run, or a method that an
    installed package brings; check: look at such a one first, on small tensors (see ``conduct``). Raises ConfigError with
    the nearest match for an unknown name or setting, for a value that is not allowed, and for code that is no method.

    >>> make_method("hosvd:variance=0.8") == METHODS["hosvd"](variance=0.8)
    True
    """
    method = text if isinstance(text, Method) else _made(text, runs_code=True)
    return _looked_at(method) if check else method


def _looked_at(method: Method) -> Method:
    """Return a method; raises ConfigError for one of the user's own that breaks what layers rely on."""
    kind = type(method)
    if kind in METHODS.values():
        return method
    try:
        name = code_label(method_name(method))
    except ConfigError:  # in a notebook, say
        name = kind.__name__
    return check_conduct(method, name)


def kept_method(text: str) -> Method:
    """Return the codec that a plan, a run or a message names: as ``make_method``, but it never runs a user's own code."""
    return _made(text, runs_code=False)


def _made(text: str, runs_code: bool, others: tuple[str, ...] = ()) -> Method:
    """Return the codec that a text names; others: names that are allowed where the text is from, but are no codec's."""
    name, written = spec.split(text, (AUTO, *METHODS))
    if name == AUTO:
        raise ConfigError("auto mixes methods under a plan: it is for make_plan, fedact.plan and fedact.simulate")
    if name in METHODS:
        return spec.fill(METHODS[name], f"method {name}", written, text)
    if is_code(name):
        return build_own(own_class(name, runs_code), code_label(name), written, text)
    if entry := installed_class(name):
        return build_own(entry, name, written, text)
    if name.endswith(".py"):
        raise ConfigError(f"method {name}: write which of its classes, as in {name}:NAME")
    raise unknown("method", name, (*METHODS, *others, *installed_names()))


def choose_method(text: str | Method) -> Method | str:
    """Return the codec that a method's text names, or ``auto`` as it is; raises ConfigError as ``make_method`` does."""
    if isinstance(text, Method):
        return _looked_at(text)
    name, settings = spec.split(text, (AUTO, *METHODS))
    if name == AUTO and settings:
        raise ConfigError(f"method auto has no settings, but {next(iter(settings))!r} was given")
    return AUTO if name == AUTO else _looked_at(_made(text, runs_code=True, others=(AUTO,)))


def method_name(method: Method) -> str:
    """Return the full, canonical name: every setting that is not its default.

    Of a method of your own, with the file's whole path; raises ConfigError for one that no other process could load.

    >>> method_name(METHODS["hosvd"](variance=0.8, bits=8))
    'hosvd:variance=0.8,bits=8'
    """
    name = next((name for name, entry in METHODS.items() if entry is type(method)), None)
    return spec.spell(name or own_name(type(method)), method)


def check_for(method: Method, *dimensions: int) -> None:
    """Raise ConfigError for ranks that fit no tensor of one of these numbers of dimensions: all would be kept exactly."""
    if all(type(method.for_dimensions(count)) is not type(method) for count in dimensions):
        kinds = " or ".join({SERIES: "series or tokens", PICTURES: "pictures"}[count] for count in dimensions)
        raise ConfigError(f"{method_name(method)} gives ranks for other tensors than those of {kinds}")


def published() -> list[str]:
    """Return every method with the setting of its paper, written out where it is also the default."""
    return [name + (f":{entry.traits.published}" if entry.traits.published else "") for name, entry in METHODS.items()]


__all__ = [
    "AUTO", "METHODS", "NO_STATE", "PICTURES", "SERIES", "Compressed", "Method", "State", "Sweep", "Traits", "check_for",
    "choose_method", "installed_class", "installed_names", "kept_method", "make_method", "method_name", "published",
    "settings", "shape_of",
]  # fmt: skip


def family(method: Method) -> Method:
    """Return the method without the setting that it is swept over."""
    setting = method.traits.sweep.setting
    defaults = {field.name: field.default for field in fields(method)}
    return with_setting(method, setting, defaults[setting]) if setting else method


def families(methods: Iterable[str | Method] | None = None) -> list[Method]:
    """Return the families of these methods, or of every method and its variants, each once."""
    if methods is None:
        methods = [f"{name}:{variant}" for name, entry in METHODS.items() for variant in entry.traits.variants]
    return list(dict.fromkeys(family(make_method(method)) for method in methods))


def at(method: Method, value: float) -> Method:
    """Return the method with a value for the setting that it is swept over."""
    return with_setting(method, method.traits.sweep.setting, value)


def with_setting(method: Method, name: str, value: Any) -> Method:
    """Return the method with another value for one of its settings."""
    settings: dict[str, Any] = {name: value}
    return replace(method, **settings)


def swept(methods: Iterable[str | Method] | None = None) -> list[str]:
    """Return the names of the families' methods at every value worth drawing; of one that has no such setting, itself."""
    points = ([at(method, value) for value in method.traits.sweep.values] or [method] for method in families(methods))
    return [method_name(method) for family_points in points for method in family_points]
