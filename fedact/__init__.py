"""fedact: what a fleet of small devices can learn under an activation-memory budget."""

import os
from importlib import import_module
from typing import Any

# A simulator does not phone home; flwr and ray read these when they are imported.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Torch's threads spin while they wait: on a busy machine a step took hundreds of times as long, and with this bound 12 times
# less; on a quiet one it is the same. It counts where torch is imported later.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

_PUBLIC = {
    "compress": "nn.surgery",
    "restore": "nn.surgery",
    "apply": "nn.surgery",
    "measure_memory": "measure.memory",
    "make_plan": "planner",
    "Plan": "config.plan",
    "load_run": "storage.run",
    "ConfigError": "config.errors",
}
__all__ = ["ConfigError", "Plan", "apply", "compress", "compression", "load_run", "make_plan", "measure_memory", "restore"]


def __getattr__(name: str) -> Any:
    """Import what is asked for only then: ``--help`` needs neither torch nor flwr."""
    if name == "compression":
        return import_module("fedact.compression")
    if name not in _PUBLIC:
        raise AttributeError(f"module 'fedact' has no attribute {name!r}")
    return getattr(import_module(f"fedact.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return __all__
