"""Environment variables of the libraries below fedact, set before they are imported; a value of the user's own stays."""

import os
from collections.abc import Mapping

LIBRARIES = {
    # A simulator does not phone home.
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    # Torch's threads spin while they wait: on a busy machine a step took hundreds of times as long, and with this bound 12
    # times less; on a quiet one it is the same.
    "GOMP_SPINCOUNT": "10000",
}
RAY = {
    # Ray warns otherwise that it is going to do this by itself; a client on the CPU looks for no GPU.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_NUM_REDIS_GET_RETRIES": "3",
}


def set_defaults(defaults: Mapping[str, str]) -> None:
    """Set the variables that have no value yet; they count for libraries that are imported afterwards."""
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
