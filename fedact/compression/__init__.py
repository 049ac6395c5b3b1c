"""The methods: how an activation is kept between the forward and the backward pass."""

from fedact import spec
from fedact.compression.exact import Exact, Vanilla
from fedact.compression.hosvd import HOSVD
from fedact.compression.method import Compressed, Method

METHODS: dict[str, type[Method]] = {
    "vanilla": Vanilla,
    "exact": Exact,
    "hosvd": HOSVD,
}
"""The one table of methods; to add one, write its file and its line."""


def make_method(text: str | Method) -> Method:
    """Return the codec that ``NAME:key=value,...`` names; raises ConfigError with the nearest match."""
    return text if isinstance(text, Method) else spec.build("method", METHODS, text)


def method_name(method: Method) -> str:
    """Return the full, canonical name, such as ``hosvd:variance=0.8``."""
    name = next(name for name, entry in METHODS.items() if entry is type(method))
    return spec.spell(name, method)


__all__ = ["METHODS", "Compressed", "Method", "make_method", "method_name"]
