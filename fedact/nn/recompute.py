"""What an installed model makes again, and how far back it is made again from, whatever its methods."""

from collections.abc import Iterable, Mapping

from torch import nn

from fedact.compression import Method
from fedact.nn.graph import named_modules
from fedact.nn.install import install
from fedact.nn.layers import CONVOLUTIONS, RecomputedSequential, RematerializedCodec, SourceConvolution, has_weights
from fedact.nn.streams.install import Images, StreamEntry


def recompute_of(model: nn.Module) -> int:
    """Return how many convolutions back, at most, what an installed model makes again is computed from; 0 where nothing is.

    An activation's mask is made from its output, one convolution after an input. In a segment of ``checkpoint`` all is
    computed from the segment's input. Installed with this recompute, the same methods make the same again.
    """
    found = [0]
    for module in model.modules():
        for name in ("codec", "source"):
            if isinstance(codec := vars(module).get(name), RematerializedCodec):
                found.append(max(1, _convolutions_in(codec.chain) - (name == "source" and not module.mask_is_deferred)))
        if isinstance(module, RecomputedSequential):
            groups = [nn.Sequential(*group) for group in module.segments()]
            trained = [group for group in groups if any(parameter.requires_grad for parameter in group.parameters())]
            found += [max(1, _convolutions_in(group.modules()) - 1) for group in trained]
    return max(found)


def _convolutions_in(modules: Iterable[nn.Module]) -> int:
    return sum(isinstance(module, CONVOLUTIONS) for module in modules)


def rematerialized_inputs(model: nn.Module, methods: Mapping[str, Method], room: int | None = None) -> dict[str, str]:
    """Install these methods, and return the layers whose input is rematerialized, with the frozen layer it comes from.

    That is the frozen layer whose saved input is counted there; an empty name where the source is trained, or is counted
    elsewhere. room: bytes for the wide maps of blocks in streams, of which the images, too, are kept without a byte.
    """
    install(model, methods, room=room)
    frozen = {module.codec: name for name, module in named_modules(model) if isinstance(module, SourceConvolution)}
    codecs = {name: getattr(model.get_submodule(name), "codec", None) for name in methods}
    rematerialized = {name: codec for name, codec in codecs.items() if isinstance(codec, RematerializedCodec)}
    found = {name: frozen[codec.source] if codec.counts else "" for name, codec in rematerialized.items()}
    return found | _streamed_inputs(model, methods)


def streamed_layers(model: nn.Module) -> dict[str, str]:
    """Return the layers of an installed model's blocks in streams, each with the one whose saved input it is made from."""
    names = {module: name for name, module in named_modules(model)}
    entries = [module for module in names if isinstance(module, StreamEntry)]
    return {names[module]: names[entry] for entry in entries for module in entry.stream.modules if module is not entry}


def _streamed_inputs(model: nn.Module, methods: Mapping[str, Method]) -> dict[str, str]:
    """Return the same for the layers of an installed model's blocks in streams."""
    names, found = {module: name for name, module in named_modules(model)}, dict[str, str]()
    for entry in [module for module in names if isinstance(module, StreamEntry)]:
        layers = [name for module in entry.stream.modules if (name := names[module]) in methods]
        found |= dict.fromkeys(layers, "")
        trained = next((name for name in layers if has_weights(model.get_submodule(name))), "")
        if trained and not isinstance(entry.codec.method, Images) and not isinstance(entry.codec, RematerializedCodec):
            found[trained] = names[entry]
    return {name: source for name, source in found.items() if source != name}
