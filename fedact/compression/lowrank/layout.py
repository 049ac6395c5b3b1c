"""What is no tensor of a stored core and factors."""

from typing import NamedTuple

import torch


class Layout(NamedTuple):
    """The tensor's shape and type, the core's shape; whose factors follow the core, and whose are the state."""

    shape: torch.Size
    dtype: torch.dtype
    core: torch.Size
    modes: tuple[int, ...]
    state_modes: tuple[int, ...]
