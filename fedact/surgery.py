"""Puts a method or a plan into a model and takes it out again."""

import warnings
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from fedact.compression import Method, check_for_images, make_method
from fedact.dataflow import consumers, downstream
from fedact.derivation import Derivation, derived_inputs, derived_masks
from fedact.errors import ConfigError
from fedact.layers import (
    LEAN,
    PLAIN,
    SMOOTH,
    TRAINED,
    DerivedKeeper,
    Keeper,
    Keeping,
    Masked,
    OriginConv2d,
    RecomputedSequential,
    Swapped,
    Table,
    has_weights,
    switched_off,
)
from fedact.plans import Plan

_TRAINABLE = "_fedact_trainable"
_OWN = ("keeper", "output_is_kept", "mask_is_left", "origin", "segment")
"""What surgery hangs on a module, and ``restore`` takes off again."""

KEEP_NOTHING = (
    nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Flatten, nn.Unflatten, nn.Identity, nn.Upsample, nn.PixelShuffle,
    nn.PixelUnshuffle, nn.ChannelShuffle, nn.ConstantPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d, nn.CircularPad2d,
)  # fmt: skip
"""Layers whose gradient needs no activation anyway."""


def convolutions(model: nn.Module) -> list[str]:
    """Return the names of the model's 2-D convolutions in definition order."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]


def head(model: nn.Module) -> list[str]:
    """Return the name of the last linear layer, in a list; an empty one where a convolution comes last."""
    kinds = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    return [kinds[-1][0]] if kinds and isinstance(kinds[-1][1], nn.Linear) else []


def trained_layers(model: nn.Module, layers: int, train_norm: bool = False) -> list[str]:
    """Return the names of the last ``layers`` convolutions, of the head, and with ``train_norm`` of the batch norms after.

    Raises ConfigError where the model has fewer convolutions, or where nothing would be trained.
    """
    names = convolutions(model)
    if not 0 <= layers <= len(names):
        raise ConfigError(f"the model has {len(names)} convolutions: layers is at least 0 and at most that, not {layers}")
    trained = names[len(names) - layers :] + head(model)
    if not trained:
        raise ConfigError("the model has no linear head: layers must be at least 1, not 0")
    return trained + (_norms_after(model, trained[0]) if train_norm and layers else [])


def _norms_after(model: nn.Module, first: str) -> list[str]:
    """Return the names of the batch norms with statistics, a scale and a shift that are defined after a layer."""
    names = list(dict(model.named_modules()))
    later = [(name, model.get_submodule(name)) for name in names[names.index(first) + 1 :]]
    return [
        name for name, module in later if isinstance(module, nn.BatchNorm2d) and module.affine and _has_statistics(module)
    ]


def smooth_activations(model: nn.Module) -> list[str]:
    """Return the names of the activations whose input is kept through a method where a gradient passes them."""
    return [name for name, module in model.named_modules() if isinstance(module, tuple(SMOOTH))]


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that training changes, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def compress(
    model: nn.Module,
    method: str | Method = "hosvd:variance=0.8",
    layers: int = 4,
    train_norm: bool = False,
    seed: int = 0,
) -> nn.Module:
    """Freeze all but the last ``layers`` convolutions and the head, and keep their inputs through a method, in place.

    train_norm: also train the scales and shifts of the batch norms after the first trained convolution. seed: what is random
    in a method follows from it. Batch norm stays in eval mode and dropout off, as for every method; state_dict keys stay.
    Returns the model. Raises ConfigError for an unknown method or too many layers; warns of layers that autograd goes on
    keeping the activations of.
    """
    codec = make_method(method)
    names = trained_layers(restore(model), layers, train_norm)
    return install(model, assign(model, names + smooth_activations(model), codec), seed)


def assign(model: nn.Module, names: Iterable[str], method: Method) -> dict[str, Method]:
    """Return the method of each named layer's input; raises ConfigError for ranks that no convolution's input has."""
    dimensions = {name: 2 if isinstance(model.get_submodule(name), nn.Linear) else 4 for name in names}
    if 4 in dimensions.values():
        check_for_images(method)
    return {name: method.for_dimensions(2) if count == 2 else method for name, count in dimensions.items()}


def apply(model: nn.Module, plan: Plan, seed: int = 0) -> nn.Module:
    """Put a plan into a model, in place; returns the model. Raises ConfigError for a plan of another model.

    seed: what is random in a method follows from it.
    """
    names = set(dict(model.named_modules()))
    for kept in plan.kept:
        if kept.name not in names:
            raise ConfigError(f"the plan keeps the input of {kept.name!r}, which the model does not have")
    return install(model, {kept.name: make_method(kept.method) for kept in plan.kept}, seed)


def install(model: nn.Module, methods: Mapping[str, Method], seed: int = 0) -> nn.Module:
    """Train the named layers, each with its method; freeze every other parameter."""
    restore(model)
    lean = all(method.lean for method in methods.values())
    derived = derived_inputs(model, methods) if lean else {}
    covered = _covered(model, {name: m for name, m in methods.items() if name not in derived}) if lean else []
    trained = [name for name in methods if has_weights(model.get_submodule(name))]
    passed = downstream(model, trained) if lean else set()
    masks = derived_masks(model, derived, passed, _kept_convolutions(model, methods, derived), _reach(methods))
    setattr(model, _TRAINABLE, frozenset(trained_parameters(model)))
    model.requires_grad_(False)
    for place, (name, method) in enumerate(methods.items()):
        module = model.get_submodule(name).requires_grad_(True)
        if lean and _swap(module, TRAINED | SMOOTH):
            module.keeper = Keeper(method, seed + place)  # type: ignore[assignment]
    for module in model.modules():
        _swap(module, LEAN if lean else PLAIN)
    for name in covered:
        model.get_submodule(name).output_is_kept = True  # type: ignore[assignment]
    _derive(model, methods, derived, *masks)
    _recompute(model, max((method.segment for method in methods.values()), default=0))
    if lean:
        _warn(model, methods, passed)
    return model


def _reach(methods: Mapping[str, Method]) -> int:
    return max((method.derive for method in methods.values()), default=0)


def _kept_convolutions(model: nn.Module, methods: Mapping[str, Method], derived: Mapping[str, Derivation]) -> set[str]:
    """Return the convolutions whose input is kept by a method that others' inputs may be made again from."""
    own = {name for name, method in methods.items() if method.derive and name not in derived}
    return {name for name in own if isinstance(model.get_submodule(name), nn.Conv2d)} | {d.origin for d in derived.values()}


def _derive(
    model: nn.Module,
    methods: Mapping[str, Method],
    derived: Mapping[str, Derivation],
    left: Mapping[str, str],
    again: Mapping[str, Derivation],
) -> None:
    """Let the derived inputs, and the masks, be made again from what is kept at their origins."""
    for name, one in [*derived.items(), *again.items()]:
        origin = model.get_submodule(one.origin)
        # The first layer to take what a frozen one keeps counts it as its own.
        counts = not isinstance(origin, Keeping)
        if counts:
            origin.__class__ = OriginConv2d
            origin.keeper = Keeper(methods[name], 0)  # type: ignore[assignment]
        chain = [model.get_submodule(each) for each in one.chain]
        keeper = DerivedKeeper(origin.keeper, chain, counts)  # type: ignore[arg-type]
        setattr(model.get_submodule(name), "keeper" if name in derived else "origin", keeper)
    for name, layer in left.items():
        activation, taker = model.get_submodule(name), model.get_submodule(layer)
        assert isinstance(activation, Masked)
        assert isinstance(taker, Keeping)
        activation.mask_is_left = True
        taker.keeper.left = activation.slope()


def restore(model: nn.Module) -> nn.Module:
    """Take a method or a plan out of a model: the plain classes, and what was trainable before. Returns the model."""
    for module in model.modules():
        if isinstance(module, Swapped):
            module.__class__ = module.plain  # type: ignore[assignment]
            for own in _OWN:
                module.__dict__.pop(own, None)
    trainable = model.__dict__.pop(_TRAINABLE, None)
    if trainable is not None:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in trainable)
    return model


def _covered(model: nn.Module, methods: Mapping[str, Method]) -> list[str]:
    """Return the names of the ReLUs whose every output is kept as it is by a layer after them: they need no mask."""
    exact = {name for name, method in methods.items() if method.keeps_input and type(model.get_submodule(name)) in TRAINED}
    kinds = (nn.ReLU, nn.ReLU6)
    relus = {name for name, module in model.named_modules() if type(module) in kinds}
    if not (exact and relus):
        return []
    return [name for name, calls in consumers(model).items() if name in relus and all(takers & exact for takers in calls)]


def _recompute(model: nn.Module, segment: int) -> None:
    """Make the outermost Sequentials with several trained layers run in segments; 0 leaves them as they are."""
    if type(model) is nn.Sequential and segment and sum(isinstance(module, Keeping) for module in model.modules()) > 1:
        model.__class__ = RecomputedSequential
        model.segment = segment  # type: ignore[assignment]
        return
    for child in model.children():
        _recompute(child, segment)


def calibrate(model: nn.Module, x: Tensor) -> nn.Module:
    """Let the installed methods find their states on a batch, without training; returns the model."""
    with torch.enable_grad():
        model(x)
    return model


def states(model: nn.Module) -> dict[str, Tensor]:
    """Return the installed methods' states by the layers' names and the tensors' places: ``features.18.0/0``."""
    keeping = [(name, module) for name, module in model.named_modules() if isinstance(module, Keeping)]
    return {f"{name}/{place}": tensor for name, module in keeping for place, tensor in enumerate(module.state_tensors())}


def load_states(model: nn.Module, plan: Plan, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Put the states behind ``states`` into a model that carries the plan; returns the model."""
    for kept in plan.kept:
        found = {int(name.rpartition("/")[2]): t for name, t in tensors.items() if name.rpartition("/")[0] == kept.name}
        module = model.get_submodule(kept.name)
        if found and isinstance(module, Keeping):
            like = next(model.parameters())
            module.keeper.load(kept.shape[1:], tuple(found[place].to(like) for place in sorted(found)))
    return model


def _swap(module: nn.Module, table: Table) -> bool:
    """Give a module its class in the table, and tell whether it has one."""
    # Changing the class keeps the parameters, the hooks and every reference to the module, shared modules included.
    kind = type(module)
    # Known by its name: torchvision need not be loaded for it.
    random = kind.__name__ == "StochasticDepth" and kind.__module__.startswith("torchvision")
    replacement = switched_off(kind) if random else table.get(kind)  # type: ignore[arg-type]
    if replacement is None or not _has_statistics(module):
        return False
    module.__class__ = replacement
    return True


def _has_statistics(module: nn.Module) -> bool:
    return not (isinstance(module, nn.BatchNorm2d) and module.running_mean is None)


def _warn(model: nn.Module, methods: Mapping[str, Method], passed: set[str]) -> None:
    """Name the layers that a gradient passes and whose activations autograd goes on keeping."""
    names = dict(model.named_modules())
    left = [name for name in methods if name in passed and not isinstance(names[name], Keeping)]
    left += [name for name in names if name in passed and name not in left and _is_kept_by_autograd(names[name])]
    if left:
        listed = ", ".join(f"{name} ({type(names[name]).__name__})" for name in left)
        warnings.warn(f"not compressed, autograd keeps what they need: {listed}", stacklevel=4)


def _is_kept_by_autograd(module: nn.Module) -> bool:
    """Tell whether a module is one of torch's own layers that neither fedact nor its nature keeps from holding something."""
    # A frozen linear layer keeps its weight alone.
    fine = (Swapped, nn.Linear, nn.Sequential, nn.ModuleList, nn.ModuleDict, *KEEP_NOTHING)
    torchs = type(module).__module__.startswith("torch.nn")
    return torchs and not isinstance(module, fine) and not any(True for _ in module.children())
