"""``checkpoint``: keep a segment's input, run the segment again in the backward pass."""

from dataclasses import dataclass
from typing import ClassVar

from fedact.compression.exact import Itself
from fedact.config.errors import ConfigError


@dataclass(frozen=True)
class Checkpoint(Itself):
    """Keeps the inputs of segments, and recomputes what lies inside: the same gradient for one more forward pass.

    children: how many children of the outermost Sequential make a segment. While a segment is recomputed, its layers keep
    what ``exact`` keeps; outside of a Sequential they always do.
    """

    source: ClassVar[str] = "Chen et al., 2016, arXiv 1604.06174, section 4"

    children: int = 1

    def __post_init__(self) -> None:
        if self.children < 1:
            raise ConfigError(f"checkpoint: children is a whole number from 1, not {self.children}")

    @property
    def segment(self) -> int:
        return self.children
