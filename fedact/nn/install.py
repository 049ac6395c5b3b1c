"""Replaces a model's layers by memory-saving ones of the same gradient, and restores the plain ones."""

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from fedact.compression import Method
from fedact.compression.exact import Exact
from fedact.config.errors import ConfigError
from fedact.nn import blocks
from fedact.nn.channels import layers_over_last
from fedact.nn.gradient_path import as_text, downstream, keeping_functions
from fedact.nn.graph import consumers, named_modules, product_factors
from fedact.nn.layers import (
    LOW_RANK,
    NORMS,
    PLAIN,
    SAVES_LESS,
    SMOOTH,
    SOURCES,
    TRAINED,
    CodecLayer,
    LayerCodec,
    LeanAttention,
    LeanMultiheadAttention,
    Masked,
    RecomputedSequential,
    RematerializedCodec,
    Swapped,
    Table,
    fuse,
    has_weights,
    identity_class,
    known_attention,
    known_norm,
    lean_class,
    plain_class,
)
from fedact.nn.layers.parts import part_of
from fedact.nn.prefix import chunks
from fedact.nn.rematerialization import Rematerializations, rematerializations
from fedact.nn.restoration import TRAINABLE, uninstall
from fedact.nn.streams import install as streams
from fedact.nn.streams import pyramid
from fedact.nn.uncompressed import GATES, warn
from fedact.torch_private import InstanceNorm

HAVE_CODEC = TRAINED | SMOOTH
RANDOM = ("StochasticDepth", "DropBlock2d", "DropBlock3d", "DropPath")
"""Layers of torchvision and timm that are off as dropout is."""


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trainable parameters by name."""
    named, known = dict[str, nn.Parameter](), set[int]()
    for prefix, module in named_modules(model):
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.requires_grad and id(parameter) not in known:
                known.add(id(parameter))
                named[f"{prefix}.{name}" if prefix else name] = parameter
    return named


def install(
    model: nn.Module,
    methods: Mapping[str, Method],
    seed: int = 0,
    prefix_chunk: int = 0,
    room: int | None = None,
    tiles: int = 0,
) -> nn.Module:
    """Make the named layers trainable, with their inputs saved by these methods, and freeze the rest; returns the model.

    In place, after ``uninstall``; of layers that an update adapted, its parts. seed: of the methods' random numbers, plus
    the layer's place in ``methods``. prefix_chunk, tiles: how the frozen prefix runs, see ``chunks.install``. room: bytes
    for the wide maps of an inverted residual that runs in streams; None for none. Warns of layers whose activations autograd
    still saves. Raises ConfigError for a room with a method that saves everything, and for tiles where nothing can be tiled.
    """
    check_initialized(model)
    uninstall(model)
    saves_less = all(method.traits.saves_less for method in methods.values())
    chains = [] if room is None else streams.find(model, methods, room)
    pyramids = [] if room is None else pyramid.find(model, methods)
    parts = {name: part for name, module in named_modules(model) if (part := part_of(module)) is not None}
    light = [name for name, part in parts.items() if part.names and not part.keeps_input]
    trained = [*(name for name in methods if has_weights(model.get_submodule(name))), *light]
    gradient_path = downstream(model, trained) if saves_less else set()
    gates = {name for name in product_factors(model) if isinstance(model.get_submodule(name), GATES)}
    with_codec = {name: method for name, method in methods.items() if _replacement(model.get_submodule(name), HAVE_CODEC)}
    exact = [name for name in trained if name in light or methods[name].traits.keeps_input]
    functions = as_text(keeping_functions(model, trained, exact, with_codec.keys())) if saves_less else []
    streamed = {name for chain in chains for name in chain.names()}
    rematerialized = rematerializations(model, with_codec if saves_less else {}, gradient_path, streamed)
    saved = {name: method for name, method in methods.items() if name not in rematerialized.inputs}
    maskless = activations_without_mask(model, saved) if saves_less else []
    over_last = layers_over_last(model)
    _freeze(model)
    for place, (name, method) in enumerate(methods.items()):
        module = model.get_submodule(name)
        for parameter in own_parameters(module):
            parameter.requires_grad_(has_weights(module) and name not in parts)
        if saves_less and _swap(module, LOW_RANK["kept"] if name in parts and parts[name].scale is not None else HAVE_CODEC):
            module.codec = LayerCodec(method, seed + place, name in over_last)  # type: ignore[assignment]
    # What keeps its input and has no method is not called: it has nothing to train.
    for name in (*(name for name in parts if name in methods), *light):
        module, part = model.get_submodule(name), parts[name]
        for parameter_name in part.names:
            module.get_parameter(parameter_name).requires_grad_(True)
        if part.scale is not None and (not saves_less or name in light):
            _swap(module, LOW_RANK["light" if saves_less else "plain"])
    for _, module in named_modules(model):
        _swap(module, SAVES_LESS if saves_less else PLAIN)
    _share_inputs(model)
    for module in map(model.get_submodule, streamed):
        # One without a method, in a frozen block: what streams run of it is the replacement's.
        if type(module) in SMOOTH and _swap(module, SMOOTH):
            module.codec = LayerCodec(Exact(), 0)  # type: ignore[assignment]
    for name in maskless:
        model.get_submodule(name).output_is_saved = True  # type: ignore[assignment]
    _rematerialize(model, methods, rematerialized)
    _recompute(model, max((method.segment for method in methods.values()), default=0))
    fuse(model)
    blocks.install(model)
    if room is not None:
        streams.install(model, chains, methods, room, seed)
        pyramid.install(model, pyramids)
    chunks.install(model, prefix_chunk, tiles)
    if saves_less:
        warn(model, methods, gradient_path, gradient_path - gates, functions)
    return model


def own_parameters(module: nn.Module) -> list[nn.Parameter]:
    """Return what is trained of a layer: all of its parameters; of attention those of the input projection alone."""
    return list(module.parameters(recurse=not isinstance(module, nn.MultiheadAttention)))


def _share_inputs(model: nn.Module) -> None:
    """Let attention make its queries, keys and values again from the saved input of their projection."""
    for _, module in named_modules(model):
        layer = module.qkv if isinstance(module, LeanAttention) else module
        if isinstance(module, LeanAttention | LeanMultiheadAttention) and isinstance(layer, CodecLayer):
            layer.codec.dependents += 1


def _rematerialize(model: nn.Module, methods: Mapping[str, Method], rematerialized: Rematerializations) -> None:
    """Connect layers and activations to the codecs of the layers that their inputs and masks are rematerialized from."""
    for name, tensor in [*rematerialized.inputs.items(), *rematerialized.masks.items()]:
        source = model.get_submodule(tensor.source)
        # What a frozen layer saves is counted once, at the first layer that is rematerialized from it.
        counts = not isinstance(source, CodecLayer)
        if counts:
            source.__class__ = SOURCES[type(source)]
            source.codec = LayerCodec(methods[name], 0)  # type: ignore[assignment]
        chain = [model.get_submodule(link) for link in tensor.chain]
        codec = RematerializedCodec(source.codec, chain, counts)  # type: ignore[arg-type]
        setattr(model.get_submodule(name), "codec" if name in rematerialized.inputs else "source", codec)
        for module in chain:
            _note_in(module, codec, methods.get(name, codec.method))
    for name, reader in rematerialized.deferred.items():
        activation, layer = model.get_submodule(name), model.get_submodule(reader)
        assert isinstance(activation, Masked)
        assert isinstance(layer, CodecLayer)
        assert isinstance(layer.codec, RematerializedCodec)
        activation.mask_is_deferred = True
        activation.source = RematerializedCodec(layer.codec.source, layer.codec.chain, counts=False)


def _note_in(module: nn.Module, codec: RematerializedCodec, method: Method) -> None:
    """Let a module of a codec's chain note where its output comes from."""
    # A smooth activation off the gradient path saves nothing, whatever its method.
    if _swap(module, SMOOTH):
        module.codec = LayerCodec(method, 0)  # type: ignore[assignment]
    provenance, chains = codec.source.provenance, getattr(module, "chains", ())
    if isinstance(module, Swapped) and provenance not in chains:
        module.chains = (*chains, provenance)


def check_initialized(model: nn.Module) -> None:
    """Raise ConfigError for a model with lazy layers that have no weights yet."""
    for name, module in named_modules(model):
        if any(parameter is not None and is_lazy(parameter) for parameter in module._parameters.values()):
            layer = f"{name} ({type(module).__name__})"
            raise ConfigError(f"{layer} has no weights before its first input: run the model once first")


def _freeze(model: nn.Module) -> None:
    """Freeze all parameters, and note on every module which of its own were trainable."""
    for _, module in named_modules(model):
        if own := {name: parameter for name, parameter in module._parameters.items() if parameter is not None}:
            vars(module)[TRAINABLE] = {name: parameter.requires_grad for name, parameter in own.items()}
    # Afterwards, for two modules may share a parameter.
    model.requires_grad_(False)


def activations_without_mask(model: nn.Module, methods: Mapping[str, Method]) -> list[str]:
    """Return the names of the ReLUs that need no mask: layers with an exact method save all their outputs anyway."""
    inputs = [name for name, method in methods.items() if method.traits.keeps_input]
    exact = {name for name in inputs if type(model.get_submodule(name)) in TRAINED}
    relus = {name for name, module in named_modules(model) if type(module) in (nn.ReLU, nn.ReLU6)}
    if not (exact and relus):
        return []
    return [name for name, calls in consumers(model).items() if name in relus and all(readers & exact for readers in calls)]


def _recompute(model: nn.Module, segment: int) -> None:
    """Checkpoint the outermost Sequentials with several trained layers, ``segment`` of them at a time; 0 changes nothing."""
    if type(model) is nn.Sequential and segment and sum(isinstance(module, CodecLayer) for module in model.modules()) > 1:
        model.__class__ = RecomputedSequential
        model.segment = segment  # type: ignore[assignment]
        return
    for child in model.children():
        _recompute(child, segment)


def _swap(module: nn.Module, table: Table) -> bool:
    """Change a module's class to its replacement in the table, in place; tell whether there is one."""
    # Changing the class keeps the parameters, the hooks and every reference to the module, shared modules included.
    if (replacement := _replacement(module, table)) is not None:
        module.__class__ = replacement
    return replacement is not None


def _replacement(module: nn.Module, table: Table) -> Any:
    """Return the class in the table that may replace a module's, None where there is none."""
    kind: Any = type(module)
    # Known by their names: the packages need not be loaded for them.
    if kind.__name__ in RANDOM and kind.__module__.startswith(("torchvision.", "timm.")):
        return identity_class(kind) if nn.Dropout in table else None
    if nn.Dropout in table and known_attention(module):
        return lean_class(kind) if table is SAVES_LESS else plain_class(kind)
    if nn.LayerNorm in table and (known := known_norm(module)) is not None:
        return known
    return table.get(kind) if has_statistics(module) else None


def has_statistics(module: nn.Module) -> bool:
    """Return False for a batch norm without running statistics, and an instance norm with them; True for other modules."""
    if isinstance(module, InstanceNorm):
        return not module.track_running_stats
    return not (isinstance(module, NORMS) and module.running_mean is None)
