"""fedact: what a fleet of small devices can learn under an activation-memory budget."""

import sys

# While Python looks for the module of ``python -m fedact.simulate``, -m stands in its name's place. The imports that follow
# take a tenth of a second, in which a Ctrl-C is one line already.
if sys.argv[:1] == ["-m"] and any(word.removeprefix("-m").startswith("fedact.") for word in sys.orig_argv):
    from fedact.cli.signals import catch_early

    catch_early()

from importlib import import_module
from typing import Any

from fedact.config.environment import LIBRARIES, set_defaults

set_defaults(LIBRARIES)

_PUBLIC = {
    "compress": "nn.surgery",
    "restore": "nn.surgery",
    "apply": "nn.surgery",
    "measure_memory": "measure.memory",
    "floor": "measure.floor",
    "make_plan": "planner",
    "Plan": "config.plan",
    "load_run": "api.results",
    "run": "api.run",
    "ConfigError": "config.errors",
}
__all__ = [
    "ConfigError",
    "Plan",
    "apply",
    "compress",
    "compression",
    "floor",
    "load_run",
    "make_plan",
    "measure_memory",
    "restore",
    "run",
]


def __getattr__(name: str) -> Any:
    """Import what is asked for only then: ``--help`` needs neither torch nor flwr."""
    if name == "compression":
        return import_module("fedact.compression")
    if name not in _PUBLIC:
        raise AttributeError(f"module 'fedact' has no attribute {name!r}")
    return getattr(import_module(f"fedact.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return __all__
