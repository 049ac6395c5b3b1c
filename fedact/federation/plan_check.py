"""Checks of plans and states read from disk, before anything trains by them."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from fedact.compression import kept_method
from fedact.config.errors import ConfigError
from fedact.config.plan import Plan
from fedact.federation.planning import calibration_batch
from fedact.models.tasks import task_loss
from fedact.nn.adaptation import adapt
from fedact.nn.layers.stored_sizes import codecs_of
from fedact.nn.surgery import apply, trained_layers
from fedact.training.local import micro_step
from fedact.training.workspace import Workspace


def check_plan(workspace: Workspace, method: str, plan: Plan, what: str) -> None:
    """Raise ConfigError where the run could not have made this plan: other settings, or a step under it fails."""
    config = workspace.experiment.config
    if (plan.method, plan.scope, plan.batch_size) != (method, config.scope, config.batch_size):
        raise ConfigError(f"{what} is for {plan.method}, {plan.scope} bytes and batches of {plan.batch_size}")
    if plan.update != config.update:
        raise ConfigError(f"{what} is for update {plan.update}, not for {config.update}")
    if plan.status == "skipped":
        return
    if plan.lr is None and config.lr == "auto":
        raise ConfigError(f"{what} has no learning rate, and the run's config gives none")
    if config.lr not in ("auto", plan.lr) and plan.lr is not None:
        raise ConfigError(f"{what} is for a learning rate of {plan.lr:g}, not of {config.lr:g}")
    try:
        _check_layers(workspace, plan)
        _check_bytes(plan)
        x, y = (part[: plan.micro_batch] for part in calibration_batch(workspace.experiment))
        micro_step(apply(workspace.model_with({}), plan), x, y, len(y), task_loss)
        workspace.model_with({})
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"{what} is no plan for this model: {reason}") from None


def _check_layers(workspace: Workspace, plan: Plan) -> None:
    config = workspace.experiment.config
    if config.layers not in ("auto", plan.layers) and plan.status == "ok":
        raise ValueError(f"it trains {plan.layers} layers, not {config.layers}")
    names = [kept.name for kept in plan.kept]
    model = adapt(workspace.model_with({}), plan.layers, plan.update)
    missing = set(trained_layers(model, plan.layers, config.train_norm)) - set(names)
    if missing or len(set(names)) < len(names):
        raise ValueError(f"it keeps the inputs of {', '.join(names)}")


def _check_bytes(plan: Plan) -> None:
    methods = [kept_method(kept.method) for kept in plan.kept]
    if plan.fixed and not all(method.has_fixed_bytes(plan.scope) for method in methods):
        raise ValueError("its bytes are not fixed, though it says so")
    held = plan.saved_bytes if plan.scope == "saved" else plan.peak_bytes
    if plan.budget_bytes is not None and (held is None or held > plan.budget_bytes):
        raise ValueError(f"it holds {held} {plan.scope} bytes of {plan.budget_bytes}")
    if any(not kept.shape or kept.shape[0] != plan.micro_batch for kept in plan.kept):
        raise ValueError(f"its kept tensors are not of its micro-batch of {plan.micro_batch}")


def check_states(workspace: Workspace, states: Mapping[str, Tensor], plan: Plan, file: Path) -> None:
    """Raise ConfigError where the states are not those of layers that the plan saves the inputs of, in their places."""
    places: dict[str, list[str]] = {}
    for name in states:
        layer, _, place = name.rpartition("/")
        places.setdefault(layer, []).append(place)
    codecs = codecs_of(apply(workspace.model_with({}), plan))
    workspace.model_with({})
    strange = sorted(places.keys() - {name for name, codec in codecs.items() if codec.method.traits.calibrated})
    holes = [layer for layer, found in places.items() if sorted(found) != sorted(map(str, range(len(found))))]
    kinds = [name for name, tensor in states.items() if not tensor.is_floating_point()]
    if wrong := [*strange, *holes, *kinds]:
        raise ConfigError(f"{file} holds states of another plan, the first of {wrong[0]!r}")
    if not states:
        raise ConfigError(f"{file} holds no states")
