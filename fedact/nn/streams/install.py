"""Puts streams into a model: the first module of a block runs it, the others hand its output on."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import takewhile
from typing import Any

from torch import Tensor, nn

from fedact.compression import method_name
from fedact.compression.exact import Exact
from fedact.compression.method import NO_STATE, Compressed, Method, State
from fedact.config.errors import ConfigError
from fedact.nn.graph import named_modules
from fedact.nn.layers.base import Swapped, made_class
from fedact.nn.layers.checkpointed import RecomputedSequential
from fedact.nn.layers.codec import LayerCodec
from fedact.nn.layers.compressed import CodecLayer
from fedact.nn.streams.block import Block, StageModules
from fedact.nn.streams.find import Chain
from fedact.nn.streams.find import find as find_chains
from fedact.nn.streams.pooled_chain import PooledChain
from fedact.nn.streams.sources import BlockCodec, note, sources
from fedact.nn.streams.spare import LOSSY, narrow_of, spares
from fedact.nn.streams.walk import Stage

ATTRIBUTES = ("stream", "streams_inside", "is_last", "alone", "input_codec")
"""The attributes that ``install`` sets on modules, and ``restore`` deletes."""


class Images(Exact):
    """The model's own input, kept as it is, and not copied out of a batch: whoever calls the model has it anyway."""

    def compress(self, x: Tensor, state: State = NO_STATE) -> Compressed:
        return Compressed((x,))


class StreamEntry(CodecLayer):
    """The first module of a block in streams; its codec is the block's."""

    stream: Block

    def forward(self, x: Tensor) -> Tensor:
        y = self.stream.run(x, self.codec)
        if y is None:
            return super().forward(x)  # type: ignore[no-any-return]
        for provenance in self.chains:
            note(provenance, x, self.stream, y)
        return y


class StreamLink(Swapped, nn.Module):
    """A later module of a block in streams."""

    stream: Block
    is_last: bool

    def forward(self, x: Tensor) -> Tensor:
        return x if self.stream.hands_on(x, self.is_last) else super().forward(x)


class StreamHost(Swapped, nn.Module):
    """The innermost module that runs all modules of some blocks, which are in streams while it does.

    alone: the first module of its block, where it does nothing else.
    """

    streams_inside: Sequence[Block] = ()
    alone: tuple[StreamEntry, ...] = ()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.alone and len(args) == 1 and not kwargs:
            (entry,) = self.alone
            if (y := entry.stream.run_alone(args[0], entry)) is not None:
                return y
        with in_streams(self):
            return super().forward(*args, **kwargs)


@contextmanager
def in_streams(*modules: nn.Module) -> Iterator[None]:
    """Run the blocks of these modules in streams within this context, as a call of the modules does."""
    blocks = [block for module in modules if isinstance(module, StreamHost) for block in module.streams_inside]
    for block in blocks:
        block.calls += 1
    try:
        yield
    finally:
        for block in blocks:
            block.calls -= 1


@contextmanager
def in_whole_maps(model: nn.Module) -> Iterator[None]:
    """Run a model's blocks layer by layer within this context, whole: fast, where no bytes are counted."""
    blocks = blocks_of(model)
    for block in blocks:
        block.is_whole = True
    try:
        yield
    finally:
        for block in blocks:
            block.is_whole = False


def blocks_of(model: nn.Module) -> list[Block]:
    """Return a model's blocks that run in streams."""
    return [module.stream for _, module in named_modules(model) if isinstance(module, StreamEntry)]


def find(model: nn.Module, methods: Mapping[str, Method], room: int) -> list[Chain | PooledChain]:
    """Return a plain model's chains that may run in streams: those whose norms are not trained.

    Warns where there are none. Raises ConfigError for a method that saves everything, and for less than a byte of room.
    """
    if room < 1:
        raise ConfigError(f"room is a positive number of bytes, or None, not {room}")
    if plain := next((method for method in methods.values() if not method.traits.saves_less), None):
        raise ConfigError(
            f"{method_name(plain)} trains the plain layers, which keep everything: room goes with other methods"
        )
    chains = find_chains(model, methods)
    if not chains:
        warnings.warn("room changes nothing: no block of this model can run in streams", stacklevel=4)
    return chains


def install(
    model: nn.Module, chains: Sequence[Chain | PooledChain], methods: Mapping[str, Method], room: int, seed: int
) -> None:
    """Run a model's chains in streams, with ``room`` bytes for the wide maps of a block; in place.

    After the other layers are installed, whose classes remain those that run where streams cannot. methods: by layer; a
    block keeps its input by that of its first trained layer, exactly if it has none, and images as they are. seed: of the
    methods' random numbers, plus the layer's place in ``methods``.
    """
    seeds = {name: seed + place for place, name in enumerate(methods)}
    keeps_inputs = all(method.traits.keeps_input for method in methods.values())
    share, again = 1.0 if keeps_inputs else LOSSY, sources(chains, methods)
    to_spare = spares(narrow_of(model, chains, methods, share, again))
    hosts: dict[str, list[Block]] = {}
    for chain, spare in zip(chains, to_spare, strict=True):
        entry, *links = [model.get_submodule(name) for name in chain.names()]
        host = common_parent([*chain.names(), *([chain.pooling] if isinstance(chain, PooledChain) else [])])
        if isinstance(model.get_submodule(host), RecomputedSequential):
            # A segment may begin inside the block.
            continue
        stages = [_modules(model, stage) for stage in chain.stages]
        block = Block(stages, _inside(model, chain, host), room, _pooling(model, chain))
        block.spare, block.decodes = spare, not (keeps_inputs or chain.reads_images)
        trained = next((name for name in chain.convolutions if name in methods), "")
        if chain.reads_images:
            entry.codec = LayerCodec(Images(), 0)  # type: ignore[assignment]
        elif not isinstance(entry, CodecLayer):
            entry.codec = LayerCodec(methods.get(trained, Exact()), seeds.get(trained, 0))  # type: ignore[assignment]
        _change(entry, entry_class)
        for module in (entry, *links):
            module.stream = block  # type: ignore[assignment]
        for link in links:
            _change(link, link_class)
            link.is_last = link is links[-1]  # type: ignore[assignment]
        hosts.setdefault(host, []).append(block)
        if isinstance(chain, Chain) and _is_all(model.get_submodule(host), chain, host):
            model.get_submodule(host).alone = (entry,)  # type: ignore[assignment]
    _make_again(model, chains, methods)
    for name, blocks in hosts.items():
        module = model.get_submodule(name)
        _change(module, host_class)
        module.streams_inside = blocks  # type: ignore[assignment]


def _make_again(model: nn.Module, chains: Sequence[Chain | PooledChain], methods: Mapping[str, Method]) -> None:
    """Connect blocks to the codecs of the blocks that their narrow inputs are made again from."""
    for name, source in sources(chains, methods).items():
        found: list[Any] = [model.get_submodule(each) for each in (name, *source.blocks)]
        if not all(isinstance(each, StreamEntry) for each in found):
            continue
        entry, first, *_ = found
        entries = found[1:]
        modules = [module for each in entries for module in each.stream.modules]
        entry.codec = BlockCodec(first.codec, modules, entry.codec.method)
        for each in entries:
            each.chains = (*each.chains, first.codec.provenance)


def _change(module: Any, subclass: Callable[[Any], Any]) -> None:
    module.__class__ = subclass(type(module))


def _is_all(host: nn.Module, chain: Chain, name: str) -> bool:
    """Tell whether a host, of this name, is a Sequential of a chain's modules and nothing else."""
    known = {*chain.names(), *chain.identities}
    for path, module in host.named_modules(prefix=name):
        if path not in known and _plain(type(module)).forward is not nn.Sequential.forward:
            return False
    return True


def common_parent(names: Sequence[str]) -> str:
    """Return the name of the innermost module that has all the named ones in it."""
    paths = [name.split(".")[:-1] for name in names]
    shared = takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False))
    return ".".join(parts[0] for parts in shared)


def _inside(model: nn.Module, chain: Chain | PooledChain, host: str) -> list[nn.Module]:
    """Return the modules of a chain and their containers below the host, with a pooling, which reads its output."""
    start = len(host.split(".")) if host else 0
    names: dict[str, None] = {}
    for name in (*chain.names(), *chain.identities, *([chain.pooling] if isinstance(chain, PooledChain) else [])):
        parts = name.split(".")
        names |= dict.fromkeys(".".join(parts[: end + 1]) for end in range(start, len(parts)))
    modules = dict(named_modules(model))
    return [modules[name] for name in names if name in modules]


def _pooling(model: nn.Module, chain: Chain | PooledChain) -> nn.Module | None:
    """Return a pooled chain's max pooling, or one that takes means as its own does; None for other chains."""
    if not isinstance(chain, PooledChain):
        return None
    return model.get_submodule(chain.pooling) if chain.takes_maxima else nn.AdaptiveAvgPool2d(1)


def _modules(model: nn.Module, stage: Stage) -> StageModules:
    found: list[Any] = [model.get_submodule(name) if name else None for name in stage]
    return StageModules(*found)


def _plain(base: Any) -> Any:
    return base.plain if issubclass(base, Swapped) else base


@cache
def entry_class(base: Any) -> Any:
    """Return the subclass of a module's class that runs a block in streams."""
    return made_class(entry_class, base, f"Streamed{base.__name__}", (StreamEntry, base), plain=_plain(base))


@cache
def link_class(base: Any) -> Any:
    """Return the subclass of a module's class that hands on what a block in streams returned."""
    return made_class(link_class, base, f"Linked{base.__name__}", (StreamLink, base), plain=_plain(base))


@cache
def host_class(base: Any) -> Any:
    """Return the subclass of a module's class in which blocks are in streams."""
    return made_class(host_class, base, f"Streaming{base.__name__}", (StreamHost, base), plain=_plain(base))
