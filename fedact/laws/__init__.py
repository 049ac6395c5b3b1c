"""What every method must obey, as laws that run on anybody's method: ``python -m fedact.laws mine.py:Name``."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedact.laws.table import LAWS as LAWS

__all__ = ["LAWS"]


def __getattr__(name: str) -> Any:
    """Import the laws only when they are asked for: ``--help`` needs neither torch nor hypothesis."""
    if name != "LAWS":
        raise AttributeError(f"module 'fedact.laws' has no attribute {name!r}")
    from fedact.laws.table import LAWS

    return LAWS
