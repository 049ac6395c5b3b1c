"""The machine and the versions that figures are from, and what the last bit of a computation depends on."""

import os
import platform
import sys
from importlib.metadata import version

import torch

from fedact.storage.system import processor_name

PACKAGES = ("fedact", "flwr", "torch", "torchvision", "numpy", "tensorly")


def versions() -> dict[str, str]:
    """Return the version of Python and of each package that figures depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def machine() -> dict[str, str | int | None]:
    """Return what figures depend on of this machine: its system, processor, vector instructions and number of cores.

    >>> sorted(machine())
    ['architecture', 'cores', 'cpu_capability', 'processor', 'system']
    """
    return {
        "system": sys.platform,
        "architecture": platform.machine(),
        "processor": processor_name(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
    }


def arithmetic() -> str:
    """Return a text that changes with what rounds otherwise: the libraries and the processor, but not the threads.

    It belongs in the key of what is computed once and kept.
    """
    packages = [f"{name} {version(name)}" for name in ("torch", "torchvision", "numpy")]
    capability = torch.backends.cpu.get_cpu_capability()
    return ", ".join([*packages, f"{torch.__version__} {capability}", platform.machine(), processor_name()])
