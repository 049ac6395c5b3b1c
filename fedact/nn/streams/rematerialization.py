"""What a step in streams makes again, in the words of recompute: of a block's tensors its narrow input alone is saved."""

from collections.abc import Iterator, Mapping, Sequence
from math import prod

from torch import nn

from fedact.compression import Method
from fedact.nn.rematerialization import (
    MASK_FROM_OUTPUT,
    Rematerializations,
    Rematerialized,
    rematerializations,
)
from fedact.nn.streams.find import Chain, find
from fedact.nn.streams.pooled_chain import PooledChain
from fedact.nn.streams.sources import sources


def step_rematerializations(
    model: nn.Module, methods: Mapping[str, Method], gradient_path: set[str], in_streams: bool
) -> Rematerializations:
    """Return all that a step makes again in a plain model whose layers have these methods: by recompute, and in streams.

    gradient_path: names of the modules on it. in_streams: whether inverted residuals run so. One with a trained layer keeps
    the input of its first convolution, by the method of its first trained one, or that is made again by blocks before it;
    from it the inputs of its other layers, and the slopes of its activations, are made again.
    """
    chains = find(model, methods) if in_streams else []
    streamed = {name for chain in chains for name in chain.names()}
    found = rematerializations(model, methods, gradient_path, streamed)
    ways, by_name = sources(chains, methods), {chain.names()[0]: chain for chain in chains}
    for chain in saving_chains(chains, methods):
        way = ways.get(chain.names()[0])
        before = [name for block in way.blocks for name in by_name[block].names()] if way else []
        for name, tensor in _made_again(model, [*before, *chain.names()], len(before)):
            if type(model.get_submodule(name)) in MASK_FROM_OUTPUT:
                if name in gradient_path:
                    found.masks[name] = Rematerialized(tensor.source, (*tensor.chain, name), tensor.size)
            elif name in methods:
                found.inputs[name] = tensor
    return found


def saving_chains(chains: list[Chain | PooledChain], methods: Mapping[str, Method]) -> list[Chain | PooledChain]:
    """Return the chains with a trained convolution, whose narrow inputs are saved by a method."""
    return [chain for chain in chains if any(name in methods for name in chain.convolutions)]


def _made_again(model: nn.Module, names: Sequence[str], first: int) -> Iterator[tuple[str, Rematerialized]]:
    """Yield the modules from the ``first`` on, but for that whose input is saved, with the way from there to theirs."""
    source, *others = names
    size, done = _growth(model.get_submodule(source)), [source]
    for name in others:
        if len(done) >= first:
            yield name, Rematerialized(source, tuple(done), size)
        size *= _growth(model.get_submodule(name))
        done.append(name)


def _growth(module: nn.Module) -> float:
    """Return the elements of a module's input over its output's."""
    return prod(module.stride) * module.in_channels / module.out_channels if isinstance(module, nn.Conv2d) else 1.0
