"""Which parts of the last layers are trained: an update carried out on a model, before anything is installed in it."""

import hashlib
from collections.abc import Iterable, Mapping
from math import sqrt

import torch
from torch import Tensor, nn

from fedact.config.updates import Bias, Layers, LoRA, make_update
from fedact.nn.body import body_layers, is_example_norm, trained_layers
from fedact.nn.graph import named_modules
from fedact.nn.install import has_statistics
from fedact.nn.layers import LOW_RANK, SMOOTH
from fedact.nn.layers.base import EXAMPLE_NORMS
from fedact.nn.layers.norms import known_norm
from fedact.nn.layers.parts import DOWN, PART, UP, Part, product

NORMS = nn.BatchNorm1d, nn.BatchNorm2d
SMALL = 1e-3
"""Entries of B where gradients are measured: of 0, as training begins, no error of A's gradient could be told."""
FACTORS = f".{DOWN}", f".{UP}"
"""How the names of a low-rank update's parameters end."""


def adapt(model: nn.Module, layers: int, update: str = "layers", seed: int = 0, train_norm: bool = False) -> nn.Module:
    """Note on the last ``layers`` of a plain model's body what of them an update trains, in place; returns the model.

    train_norm: also on the norms of each example's after the first of them, whose input is kept whether they are trained or
    not; batch norms are trained where their input is kept.

    A low-rank update adds its parameters to the layers, which compute what they did: B is 0, and A is drawn from the seed
    and the layer's name. Convolutions in groups (depthwise ones) have none and stay frozen, as do subclasses of PyTorch's
    layers. Raises ConfigError for an unknown update, and for layers that the model does not have.
    """
    kind = make_update(update)
    if isinstance(kind, Layers):
        for module in map(model.get_submodule, trained_layers(model, layers, train_norm) if train_norm else ()):
            if is_example_norm(module):
                names = (name for name, parameter in module._parameters.items() if parameter is not None)
                vars(module)[PART] = Part(tuple(names), keeps_input=True)
        return model
    trained_layers(model, layers)
    last = body_layers(model)[-layers:] if layers else []
    for name in last:
        module = model.get_submodule(name)
        if isinstance(kind, LoRA):
            _add_factors(module, name, kind, seed)
        else:
            vars(module)[PART] = Part(_bias(module))
    if isinstance(kind, Bias) and last:
        modules = named_modules(model)
        after = modules[[name for name, _ in modules].index(last[0]) + 1 :]
        for _, module in after:
            if _is_norm(module):
                vars(module)[PART] = Part(_bias(module))
    return model


def _bias(module: nn.Module) -> tuple[str, ...]:
    known = type(module) in LOW_RANK["plain"] or _is_norm(module)
    return ("bias",) if known and module._parameters.get("bias") is not None else ()


def _is_norm(module: nn.Module) -> bool:
    """Tell whether a module is a batch norm, or a norm of each example's, that installing knows."""
    of_examples = isinstance(module, EXAMPLE_NORMS) and (type(module) in SMOOTH or known_norm(module) is not None)
    return has_statistics(module) and (isinstance(module, NORMS) or of_examples)


def _add_factors(module: nn.Module, name: str, update: LoRA, seed: int) -> None:
    """Add the two factors of a low-rank update to a layer."""
    weight = module._parameters.get("weight")
    if weight is None or type(module) not in LOW_RANK["plain"] or getattr(module, "groups", 1) > 1:
        vars(module)[PART] = Part(())
        return
    module.register_parameter(DOWN, nn.Parameter(first_factor(name, weight, update.rank, seed)))
    module.register_parameter(UP, nn.Parameter(second_factor(weight, update.rank)))
    names = (UP,) if update.freeze_a else (DOWN, UP)
    vars(module)[PART] = Part(names, keeps_input=not update.freeze_a, scale=update.scale)


def first_factor(name: str, weight: Tensor, rank: int, seed: int) -> Tensor:
    """Return A as it is drawn for a layer of this weight: uniform, with the variance 1 / (3 inputs) of PyTorch's own."""
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    drawn = 2 * torch.rand((rank, *weight.shape[1:]), generator=generator) - 1
    return drawn.div_(sqrt(weight[0].numel())).to(weight)


def second_factor(weight: Tensor, rank: int) -> Tensor:
    """Return B as training begins with it: 0."""
    return weight.new_zeros(len(weight), rank, *[1] * (weight.dim() - 2))


def draw_second_factors(model: nn.Module) -> nn.Module:
    """Fill B of every low-rank update with small numbers, always the same, in place; returns the model, for measuring."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(up := module._parameters.get(UP), nn.Parameter):
            up.data.copy_(SMALL * torch.randn(up.shape, generator=generator))
    return model


def is_factor(name: str) -> bool:
    """Tell whether a tensor's name is that of a low-rank update's factor."""
    return name.endswith(FACTORS)


def plain_name(name: str) -> str:
    """Return the name of the tensor of the plain model that changes where this one does."""
    return f"{name.rpartition('.')[0]}.weight" if is_factor(name) else name


def initial(names: Iterable[str], start: Mapping[str, Tensor], update: str, seed: int) -> dict[str, Tensor]:
    """Return what training begins with of these tensors: those of the plain model, in its order, then the factors.

    start: the plain model's tensors. seed: as of ``adapt``.
    """
    wanted, kind = dict.fromkeys(names), make_update(update)
    found = {name: tensor for name, tensor in start.items() if name in wanted}
    if not isinstance(kind, LoRA):
        return found
    for name in filter(is_factor, wanted):
        layer, weight = name.rpartition(".")[0], start[plain_name(name)]
        first = name.endswith(DOWN)
        found[name] = first_factor(layer, weight, kind.rank, seed) if first else second_factor(weight, kind.rank)
    return found


def merged(
    tensors: Mapping[str, Tensor], start: Mapping[str, Tensor], update: str, seed: int, apart: Iterable[str] = ()
) -> dict[str, Tensor]:
    """Return trained tensors as those of the plain model: low-rank updates added to the weights of its start.

    apart: names of factors that are left out, for a model that has them itself. seed: as of ``adapt``.
    """
    kind, own = make_update(update), set(apart)
    if not isinstance(kind, LoRA):
        return dict(tensors)
    plain = {name: tensor for name, tensor in tensors.items() if not is_factor(name)}
    for name, up in tensors.items():
        if name.endswith(f".{UP}") and name not in own:
            layer, weight = name.rpartition(".")[0], start[plain_name(name)]
            drawn = tensors.get(f"{layer}.{DOWN}")
            down = first_factor(layer, weight, kind.rank, seed) if drawn is None else drawn
            plain[plain_name(name)] = weight + product(down.to(weight), up.to(weight), kind.scale)
    return plain
