"""Where the room of streams may be exceeded: at a block beside whose maps less is alive than at the worst one."""

from collections.abc import Container, Iterable, Sequence
from math import prod
from typing import Any, NamedTuple

from torch import nn

from fedact.nn.graph import named_modules
from fedact.nn.streams.areas import reduction
from fedact.nn.streams.find import Chain
from fedact.nn.streams.pooled_chain import PooledChain

LOSSY = 0.25
"""What a method with loss is taken to keep of an input, in whose bytes all of this is counted."""


class Spare(NamedTuple):
    """What a block's wide maps may take beside the room, for every byte of its input.

    frozen: without a gradient. forward, backward: with one.
    """

    frozen: float = 0.0
    forward: float = 0.0
    backward: float = 0.0


class Narrow(NamedTuple):
    """The elements of a block's input and output, to scale.

    kept: the share of its input that is kept for the backward pass, 0 for images and where there is no gradient. again: the
    share that is whole in the backward pass though it is not kept, 1 where it is made again. is_image: whether its input
    is the model's own, which counts nothing and has no gradient.
    """

    x: float
    y: float
    kept: float
    is_image: bool
    is_recorded: bool
    again: float = 0.0


def narrow_of(
    model: nn.Module, chains: Sequence[Chain | PooledChain], layers: Iterable[str], share: float, again: Container[str]
) -> list[Narrow]:
    """Return the sizes of blocks in streams.

    layers: that are trained. share: of a block's input that is kept. again: the first modules of the blocks whose inputs are
    made again.
    """
    order = {name: place for place, (name, _) in enumerate(named_modules(model))}
    start = min((order[name] for name in layers), default=len(order))
    found = []
    for chain in chains:
        entry, last = chain.names()[0], chain.names()[-1]
        convolutions: list[Any] = [model.get_submodule(name) for name in chain.convolutions]
        after = chain.area / prod(map(reduction, convolutions))
        if isinstance(chain, PooledChain):
            after = after / reduction(model.get_submodule(chain.pooling)) if chain.takes_maxima else 0.0
        is_recorded, is_again = order[last] >= start, entry in again
        kept = share if is_recorded and not chain.reads_images and not is_again else 0.0
        x, y = chain.area * convolutions[0].in_channels, after * convolutions[-1].out_channels
        found.append(Narrow(x, y, kept, chain.reads_images, is_recorded, float(is_again)))
    return found


def spares(blocks: Sequence[Narrow]) -> list[Spare]:
    """Return what blocks that run one after the other have to spare.

    Alive beside the maps are the output or its gradient, the input or its gradient, and what is kept up to there.
    """
    beside = [block.y + (0.0 if block.is_image else block.x) for block in blocks]
    kept, backward = 0.0, []
    for block, own in zip(blocks, beside, strict=True):
        kept += block.kept * block.x
        backward.append(own + kept + block.again * block.x)
    most = max((size for size, block in zip(backward, blocks, strict=True) if block.is_recorded), default=0.0)
    found = []
    for block, own, size in zip(blocks, beside, backward, strict=True):
        spare = max(0.0, most - size) / block.x
        # Where the input is kept as it is, forward it is alive once, and has no gradient yet.
        found.append(Spare((max(beside) - own) / block.x, spare + (block.kept == 1), spare))
    return found
