"""Narrow inputs of blocks in streams that are not saved, but made again by the blocks before them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from fedact.compression.method import Compressed, Method
from fedact.nn.layers.codec import Encoded, LayerCodec
from fedact.nn.layers.provenance import Origin, Provenance, chain_of, computes_alike
from fedact.nn.layers.rematerialized import Rematerialization, RematerializedCodec, check_unchanged
from fedact.nn.streams.block import Block
from fedact.nn.streams.find import Chain
from fedact.nn.streams.pooled_chain import PooledChain


class Source(NamedTuple):
    """Where a block's narrow input is made again from: by these blocks, from the first one's input.

    blocks: their first modules' names, in the order they run. convolutions: how many they have.
    """

    blocks: tuple[str, ...] = ()
    convolutions: int = 0


def sources(chains: Sequence[Chain | PooledChain], methods: Mapping[str, Method]) -> dict[str, Source]:
    """Return where blocks' inputs are made again from, by the blocks' first modules; without the blocks that save theirs.

    A block that reads another one's output is made again from that one's source, if it has one within ``recompute``
    convolutions, or from that one's input, which is saved for its own gradients. Images take no bytes.
    """
    found: dict[str, Source] = {}
    by_name = {chain.names()[0]: chain for chain in chains}
    for name, chain in by_name.items():
        before = by_name.get(chain.follows)
        if before is None or not _is_trained(before, methods) or not _is_trained(chain, methods):
            continue
        way = found.get(chain.follows, Source())
        source = Source((*way.blocks, chain.follows), way.convolutions + len(before.convolutions))
        if source.convolutions <= max(methods[layer].recompute for layer in chain.convolutions if layer in methods):
            found[name] = source
    return found


def _is_trained(chain: Chain | PooledChain, methods: Mapping[str, Method]) -> bool:
    return any(layer in methods for layer in chain.convolutions)


def note(provenance: Provenance, x: Tensor, block: Block, y: Tensor) -> None:
    """Note that a block computed y in streams from x."""
    origin = provenance.origin(x)
    if origin is not None and all(map(computes_alike, block.modules)):
        provenance.note(y, Origin(origin.run, origin.chain + chain_of(block.modules)))


class BlockRematerialization(Rematerialization):
    """A narrow input that is made again by the blocks that computed it, in streams."""

    reconstructs_channels = False

    def reconstruct(self, compressed: Compressed) -> Tensor:
        for link in self.chain:
            check_unchanged(link)
        blocks: dict[Any, None] = dict.fromkeys(link.module.stream for link in self.chain)
        x = self.method.reconstruct(compressed)
        for block in blocks:
            x = block.frozen_output(x, block.room)
        return x.to(self.dtype)


class BlockCodec(RematerializedCodec):
    """The codec of a block's narrow input that earlier blocks make again; where they did not run so, a method saves it."""

    def __init__(self, source: LayerCodec, chain: Sequence[nn.Module], method: Method) -> None:
        super().__init__(source, chain, counts=False)
        self.method = method

    def encode(self, x: Tensor, given: Tensor) -> Encoded:
        origin = self.source.provenance.origin(given)
        if origin is None or [link.module for link in origin.chain] != [*self.chain]:
            return LayerCodec.encode(self, x, given)
        encoded = super().encode(x, given)
        made = encoded.method
        if not isinstance(made, Rematerialization):
            return encoded
        return encoded._replace(method=BlockRematerialization(made.method, made.chain, made.dtype))
