"""Puts layers that keep less into a model, and the plain ones back."""

import warnings
from collections.abc import Mapping

from torch import nn

from fedact.compression import Method
from fedact.nn.graph import consumers, downstream, factors
from fedact.nn.layers import (
    PLAIN,
    SAVES_LESS,
    SMOOTH,
    TRAINED,
    CodecLayer,
    LayerCodec,
    Masked,
    RecomputedSequential,
    RematerializedCodec,
    SourceConv2d,
    Swapped,
    Table,
    has_weights,
    switched_off,
)
from fedact.nn.prefix import chunks
from fedact.nn.rematerialization import Rematerializations, rematerializations

_TRAINABLE = "_fedact_trainable"
_OWN = ("codec", "output_is_kept", "mask_is_deferred", "origin", "segment")
"""What surgery hangs on a module, and ``restore`` takes off again."""

KEEP_NOTHING = (
    nn.Flatten, nn.Unflatten, nn.Identity, nn.Upsample, nn.PixelShuffle,
    nn.PixelUnshuffle, nn.ChannelShuffle, nn.ConstantPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d, nn.CircularPad2d,
)  # fmt: skip
"""Layers whose gradient needs no activation."""
GATES = (nn.Sigmoid,)
"""Activations that save only their output; free where a product saves it anyway."""


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that training changes, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def install(model: nn.Module, methods: Mapping[str, Method], seed: int = 0, prefix_chunk: int = 0) -> nn.Module:
    """Train the named layers, each with its method; freeze every other parameter.

    prefix_chunk: how many examples at a time the frozen part before the first trained layer is run on; 0 for all at once.
    """
    restore(model)
    lean = all(method.traits.saves_less for method in methods.values())
    trained = [name for name in methods if has_weights(model.get_submodule(name))]
    gradient_path = downstream(model, trained) if lean else set()
    gates = {name for name in factors(model) if isinstance(model.get_submodule(name), GATES)}
    derived = rematerializations(model, methods if lean else {}, gradient_path)
    own = {name: method for name, method in methods.items() if name not in derived.inputs}
    spared = covered(model, own) if lean else []
    setattr(model, _TRAINABLE, frozenset(trained_parameters(model)))
    model.requires_grad_(False)
    for place, (name, method) in enumerate(methods.items()):
        module = model.get_submodule(name)
        module.requires_grad_(has_weights(module))
        if lean and _swap(module, TRAINED | SMOOTH):
            module.codec = LayerCodec(method, seed + place)  # type: ignore[assignment]
    for module in model.modules():
        _swap(module, SAVES_LESS if lean else PLAIN)
    for name in spared:
        model.get_submodule(name).output_is_kept = True  # type: ignore[assignment]
    _derive(model, methods, derived)
    _recompute(model, max((method.segment for method in methods.values()), default=0))
    if prefix_chunk:
        chunks.put_in(model, prefix_chunk)
    if lean:
        _warn(model, methods, gradient_path, gradient_path - gates)
    return model


def _derive(model: nn.Module, methods: Mapping[str, Method], derived: Rematerializations) -> None:
    """Let these inputs and masks be rematerialized from the saved inputs of their source layers."""
    for name, one in [*derived.inputs.items(), *derived.masks.items()]:
        origin = model.get_submodule(one.origin)
        # The first layer to take what a frozen one keeps counts it as its own.
        counts = not isinstance(origin, CodecLayer)
        if counts:
            origin.__class__ = SourceConv2d
            origin.codec = LayerCodec(methods[name], 0)  # type: ignore[assignment]
        chain = [model.get_submodule(each) for each in one.chain]
        codec = RematerializedCodec(origin.codec, chain, counts)  # type: ignore[arg-type]
        setattr(model.get_submodule(name), "codec" if name in derived.inputs else "origin", codec)
    for name, layer in derived.deferred.items():
        activation, taker = model.get_submodule(name), model.get_submodule(layer)
        assert isinstance(activation, Masked)
        assert isinstance(taker, CodecLayer)
        activation.mask_is_deferred = True
        taker.codec.deferred = activation.slope()


def restore(model: nn.Module) -> nn.Module:
    """Take a method or a plan out of a model: the plain classes, and what was trainable before. Returns the model.

    >>> import fedact, torch
    >>> model = fedact.compress(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU()), "exact", layers=1)
    >>> type(model[0]).__name__, type(fedact.restore(model)[0]).__name__
    ('CompressedConv2d', 'Conv2d')
    """
    for module in model.modules():
        chunks.take_out(module)
        if isinstance(module, Swapped):
            module.__class__ = module.plain  # type: ignore[assignment]
            for own in _OWN:
                module.__dict__.pop(own, None)
    trainable = model.__dict__.pop(_TRAINABLE, None)
    if trainable is not None:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in trainable)
    return model


def covered(model: nn.Module, methods: Mapping[str, Method]) -> list[str]:
    """Return the names of the ReLUs whose every output is kept as it is by a layer after them: they need no mask."""
    inputs = [name for name, method in methods.items() if method.traits.keeps_input]
    exact = {name for name in inputs if type(model.get_submodule(name)) in TRAINED}
    kinds = (nn.ReLU, nn.ReLU6)
    relus = {name for name, module in model.named_modules() if type(module) in kinds}
    if not (exact and relus):
        return []
    return [name for name, calls in consumers(model).items() if name in relus and all(takers & exact for takers in calls)]


def _recompute(model: nn.Module, segment: int) -> None:
    """Make the outermost Sequentials with several trained layers run in segments; 0 leaves them as they are."""
    if type(model) is nn.Sequential and segment and sum(isinstance(module, CodecLayer) for module in model.modules()) > 1:
        model.__class__ = RecomputedSequential
        model.segment = segment  # type: ignore[assignment]
        return
    for child in model.children():
        _recompute(child, segment)


def _swap(module: nn.Module, table: Table) -> bool:
    """Give a module its class in the table, and tell whether it has one."""
    # Changing the class keeps the parameters, the hooks and every reference to the module, shared modules included.
    kind = type(module)
    # Known by its name: torchvision need not be loaded for it.
    random = kind.__name__ == "StochasticDepth" and kind.__module__.startswith("torchvision")
    replacement = switched_off(kind) if random else table.get(kind)  # type: ignore[arg-type]
    if replacement is None or not has_statistics(module):
        return False
    module.__class__ = replacement
    return True


def has_statistics(module: nn.Module) -> bool:
    """Tell whether a module is no batch norm that must have its own batch's statistics."""
    return not (isinstance(module, nn.BatchNorm2d) and module.running_mean is None)


def _warn(model: nn.Module, methods: Mapping[str, Method], gradient_path: set[str], looked_at: set[str]) -> None:
    """Name the layers that a gradient passes and whose activations autograd goes on keeping; of the others, looked_at."""
    names = dict(model.named_modules())
    left = [name for name in methods if name in gradient_path and not isinstance(names[name], CodecLayer)]
    left += [name for name in names if name in looked_at and name not in left and _is_kept_by_autograd(names[name])]
    if left:
        listed = ", ".join(f"{name} ({type(names[name]).__name__})" for name in left)
        warnings.warn(f"not compressed, autograd keeps what they need: {listed}", stacklevel=4)


def _is_kept_by_autograd(module: nn.Module) -> bool:
    """Tell whether a module is one of torch's own layers that neither fedact nor its nature keeps from holding something."""
    # A frozen linear layer keeps its weight alone.
    fine = (Swapped, nn.Linear, nn.Sequential, nn.ModuleList, nn.ModuleDict, *KEEP_NOTHING)
    torchs = type(module).__module__.startswith("torch.nn")
    return torchs and not isinstance(module, fine) and not any(True for _ in module.children())
