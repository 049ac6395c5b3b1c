"""The surgery on models: which layers a method or a plan trains, installing it, and reading or loading its states."""

from collections.abc import Iterable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from fedact.compression import PICTURES, SERIES, Method, check_for, kept_method, make_method
from fedact.compression.exact import Exact
from fedact.config.errors import ConfigError
from fedact.config.plan import Plan
from fedact.config.sizes import parse_bytes
from fedact.config.updates import WHOLE, Layers, make_update
from fedact.nn.adaptation import adapt
from fedact.nn.body import body_layers, convolutions, count_text, head, smooth_activations, trained_layers
from fedact.nn.channels import as_methods_see, layers_over_last
from fedact.nn.graph import named_modules
from fedact.nn.install import install, trained_parameters
from fedact.nn.layers import CodecLayer, LayerCodec, batch_of
from fedact.nn.recompute import recompute_of, rematerialized_inputs
from fedact.nn.restoration import restore
from fedact.nn.streams.install import blocks_of

__all__ = [
    "apply",
    "assign",
    "body_layers",
    "calibrate",
    "compress",
    "convolutions",
    "count_text",
    "head",
    "install",
    "layer_inputs",
    "load_states",
    "methods_of",
    "recompute_of",
    "rematerialized_inputs",
    "reset_states",
    "restore",
    "saves_less",
    "smooth_activations",
    "states",
    "trained_layers",
    "trained_parameters",
]  # fmt: skip


def compress(
    model: nn.Module,
    method: str | Method = "hosvd:variance=0.8",
    layers: int = 4,
    train_norm: bool = False,
    seed: int = 0,
    room: int | str | None = None,
    recompute: int = 0,
    update: str = WHOLE,
) -> nn.Module:
    """Freeze all but the last ``layers`` of the ``body_layers`` and the head, and save their inputs compressed, in place.

    train_norm: also train the scales and shifts of the norms after the first trained layer. seed: of the
    method's random numbers. room: bytes, or a size such as "120KB", for the wide maps of an inverted residual, which is then
    run a few channels at a time, forward and backward, and keeps its narrow input alone (see docs/streams.md); None runs
    whole layers, the faster way. recompute: how many convolutions back another saved input may be, for a layer's own, where
    that one is no larger or saved in any case, to be made again from it in the backward pass instead of saved; the
    method's own, if it has one, stays. update: what of these layers is trained: "layers" (whole), "bias" or "lora:rank=4"
    (see ``fedact.config.updates``); the head always is, whole, and ``restore`` adds a low-rank update to its weight. Batch
    norm stays in eval mode and dropout off, as for every method; state_dict keys stay, and a low-rank update adds its own.
    What an earlier ``compress`` or ``apply`` installed is removed first. Returns the model. Raises ConfigError for an
    unknown method or update, too many layers or no size; warns of layers whose activations autograd goes on saving.

    >>> import fedact, torch
    >>> layers = torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3), torch.nn.Flatten()
    >>> model = torch.nn.Sequential(*layers, torch.nn.Linear(8 * 4 * 4, 10))
    >>> model = fedact.compress(model, "hosvd:variance=0.8", layers=1)
    >>> [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    ['2.weight', '2.bias', '4.weight', '4.bias']
    >>> torch.nn.functional.cross_entropy(model(torch.rand(4, 3, 8, 8)), torch.tensor([0, 1, 2, 3])).backward()
    """
    if isinstance(recompute, bool) or not isinstance(recompute, int) or recompute < 0:
        raise ConfigError(f"recompute is a whole number from 0, not {recompute!r}")
    codec = make_method(method).recomputing(recompute)
    wide = None if room is None else parse_bytes(room)
    if make_update(update) != Layers() and (train_norm or wide is not None):
        raise ConfigError(f"{'train_norm' if train_norm else 'room'} is for update {WHOLE}, not for {update}")
    names = trained_layers(adapt(restore(model), layers, update, seed, train_norm), layers, train_norm)
    return install(model, assign(model, names + smooth_activations(model), codec), seed, room=wide)


def assign(model: nn.Module, names: Iterable[str], method: Method) -> dict[str, Method]:
    """Return a method for every named layer, fitted to its input's dimensions; raises ConfigError for impossible ranks."""
    modules, heads = {name: model.get_submodule(name) for name in names}, head(model)
    for module, dimensions in ((nn.Conv1d, SERIES), (nn.Conv2d, PICTURES)):
        if any(isinstance(each, module) for each in modules.values()):
            check_for(method, dimensions)
    linear = method.for_dimensions(2).codec.recomputing(method.recompute)
    return {name: linear if isinstance(each, nn.Linear) and name in heads else method for name, each in modules.items()}


def apply(model: nn.Module, plan: Plan, seed: int = 0, update_seed: int = 0) -> nn.Module:
    """Install a plan's layers and methods in a model, in place; returns the model.

    What an earlier ``compress`` or ``apply`` installed is removed first. seed: of the methods' random numbers; update_seed:
    of a low-rank update's first factors. Raises ConfigError for a plan of another model.

    >>> import fedact, torch
    >>> layers = torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3), torch.nn.Flatten()
    >>> model = torch.nn.Sequential(*layers, torch.nn.Linear(8 * 4 * 4, 10))
    >>> plan = fedact.make_plan(model, "8KB", (torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])), method="exact", layers=1)
    >>> model = fedact.apply(model, plan)
    >>> [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    ['2.weight', '2.bias', '4.weight', '4.bias']
    """
    adapt(restore(model), plan.layers, plan.update, update_seed, plan.example_norms)
    install(model, methods_of(model, plan), seed, plan.prefix_chunk, plan.room_bytes, plan.tiles)
    for block in blocks_of(model):
        block.examples = plan.micro_batch
    return model


def reset_states(codecs: Mapping[str, LayerCodec], plan: Plan, seed: int = 0) -> None:
    """Clear the methods' states of a model that carries the plan, as a new ``apply`` would; codecs: the model's by layer."""
    places = {kept.name: place for place, kept in enumerate(plan.kept)}
    for name, codec in codecs.items():
        codec.reset(seed + places[name] if name in places else 0)


def methods_of(model: nn.Module, plan: Plan) -> dict[str, Method]:
    """Return the plan's methods by layer; raises ConfigError for a plan of another model."""
    names = set(dict(named_modules(model)))
    for kept in plan.kept:
        if kept.name not in names:
            raise ConfigError(f"the plan keeps the input of {kept.name!r}, which the model does not have")
    return {kept.name: kept_method(kept.method).recomputing(plan.recompute) for kept in plan.kept}


def calibrate(model: nn.Module, x: Tensor) -> nn.Module:
    """Run a forward pass that computes the installed methods' states from a batch; returns the model, not trained."""
    with torch.enable_grad():
        model(x)
    return model


def layer_inputs(model: nn.Module, trained: list[str], x: Tensor) -> dict[str, Tensor]:
    """Return, uncompressed, the inputs of the trained layers and of the smooth activations on the gradient path, by name.

    As methods see them: (batch, channels, *positions).
    """
    inputs: dict[str, Tensor] = {}
    over_last = layers_over_last(model)

    def record(name: str, layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        if name in trained or args[0].requires_grad:
            inputs[name] = as_methods_see(batch_of(layer, args[0]).detach().clone(), name in over_last)

    smooth = smooth_activations(model)
    install(model, assign(model, [*trained, *smooth], Exact()))
    handles = [model.get_submodule(name).register_forward_pre_hook(partial(record, name)) for name in (*trained, *smooth)]
    calibrate(model, x)
    for handle in handles:
        handle.remove()
    return {name: inputs[name] for name in (*trained, *smooth) if name in inputs}


def saves_less(model: nn.Module) -> bool:
    """Tell whether a model carries a method that saves less than plain training does."""
    # From the last layer, which is trained first of all: every micro-batch asks.
    return isinstance(model, CodecLayer) or any(map(saves_less, reversed([*model.children()])))


def states(model: nn.Module) -> dict[str, Tensor]:
    """Return the installed methods' state tensors, by layer and number: ``features.18.0/0``."""
    layers = [(name, module) for name, module in named_modules(model) if isinstance(module, CodecLayer)]
    return {f"{name}/{place}": tensor for name, module in layers for place, tensor in enumerate(module.state_tensors())}


def load_states(model: nn.Module, plan: Plan, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Load what ``states`` returned into a model that carries the plan; returns the model.

    Also into frozen layers, whose saved inputs others are made again from, and which are not in the plan: of these each
    state is of bases, one for each dimension of an example.
    """
    sizes, like = {kept.name: kept.shape[1:] for kept in plan.kept}, next(model.parameters())
    found: dict[str, dict[int, Tensor]] = {}
    for name, tensor in tensors.items():
        layer, _, place = name.rpartition("/")
        found.setdefault(layer, {})[int(place)] = tensor
    for layer, places in found.items():
        state, module = tuple(places[place].to(like) for place in sorted(places)), model.get_submodule(layer)
        if isinstance(module, CodecLayer):
            module.codec.load(sizes.get(layer, tuple(map(len, state))), state)
    return model
