"""The compiled loops of kernel.py, where numba is installed (extra ``fast``)."""

from functools import lru_cache
from hashlib import sha256
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from filelock import FileLock

from fedact.config.errors import ConfigError
from fedact.config.paths import cache_folder

NAME = "fedact.compression.transform.kernel"
FEWEST = 2**12
"""Coefficients of a tensor from which the loops are loaded: small jobs end before they save what loading takes."""


def kernel(count: int = 0) -> ModuleType | None:
    """Return the compiled loops for so many coefficients, None where they are not worth it, or numba is not installed."""
    return _loaded() if count >= FEWEST or _loaded.cache_info().currsize else None


@lru_cache(maxsize=1)
def _loaded() -> ModuleType | None:
    """Return the compiled loops.

    Compiling takes seconds, and numba keeps the result: one process does it, others wait for it, the first time alone.
    """
    if not find_spec("numba"):
        return None
    try:
        import_module("numba")
    except ImportError:  # as numba refuses a newer numpy
        return None
    try:
        done = _done()
        if not done.exists():
            done.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{done}.lock"):
                loops = import_module(NAME)
                done.touch()
            return loops
    except (OSError, ConfigError):
        pass  # Nowhere to wait: every process compiles for itself.
    return import_module(NAME)


def _done() -> Path:
    """Return the file that says that this kernel was compiled."""
    source = Path(__file__).with_name("kernel.py")
    state = f"{source} {source.stat().st_mtime_ns} {version('numba')}"
    return cache_folder() / f"kernel-{sha256(state.encode()).hexdigest()[:16]}"
