"""The input that a block in streams reads: whole, or decoded some channels at a time."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property

import torch

from fedact.nn.streams.arithmetic import Images, Map, as_images, map_of


class Input(ABC):
    """A block's input; parts: the channels that may be asked for together."""

    shape: torch.Size
    parts: Sequence[range]

    @abstractmethod
    def channels(self, part: range) -> Images:
        """Return some channels."""

    def rows(self, part: range) -> Map:
        """Return some channels as a map."""
        return map_of(self.channels(part))


class WholeInput(Input):
    """A block's input that is there; as_map: laid out in memory as a map is, where it is not."""

    def __init__(self, x: Images, as_map: bool = False) -> None:
        self.x, self.shape, self.parts = as_images(map_of(x), x.shape) if as_map else x, x.shape, [range(x.shape[1])]

    @cached_property
    def map(self) -> Map:
        """The input as a map: a copy where there are several images whose channels are not last in memory."""
        return map_of(self.x)

    def channels(self, part: range) -> Images:
        return self.x if len(part) == self.shape[1] else self.x[:, part.start : part.stop]

    def rows(self, part: range) -> Map:
        return self.map if len(part) == self.shape[1] else self.map[:, part.start : part.stop]


class DecodedInput(Input):
    """A block's input that is decoded some channels at a time."""

    def __init__(self, decoded: Callable[[range], Images], shape: torch.Size, parts: Sequence[range]) -> None:
        self.decoded, self.shape, self.parts = decoded, shape, parts

    def channels(self, part: range) -> Images:
        return self.decoded(part)
