"""Methods that differ in one setting alone, the one that trades bytes for error."""

from collections.abc import Iterable
from dataclasses import fields, replace

from fedact.compression import METHODS, Method, make_method, method_name


def family(method: Method) -> Method:
    """Return the method without the setting that it is swept over."""
    setting, _ = method.sweep
    defaults = {field.name: field.default for field in fields(method)}
    return replace(method, **{setting: defaults[setting]}) if setting else method


def families(methods: Iterable[str | Method] | None = None) -> list[Method]:
    """Return the families of these methods, or of every method and its variants, each once."""
    every = (f"{name}:{variant}" for name, entry in METHODS.items() for variant in entry.variants)
    return list(dict.fromkeys(family(make_method(text)) for text in (every if methods is None else methods)))


def at(method: Method, value: float) -> Method:
    """Return the method with a value for the setting that it is swept over."""
    return replace(method, **{method.sweep[0]: value})


def swept(methods: Iterable[str | Method] | None = None) -> list[str]:
    """Return the names of the families' methods at every value worth drawing; of one that has no such setting, itself."""
    each = ((method, method.sweep[1]) for method in families(methods))
    return [method_name(found) for method, values in each for found in ([at(method, v) for v in values] or [method])]
