"""The plans of a run: the server makes one for every distinct budget, from its own examples, and replans when they age."""

import logging
import time
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from torch import Tensor

from fedact.compression import PICTURES, SERIES, Method, check_for, choose_method, kept_method, method_name
from fedact.config.baselines import baseline_of, method_of
from fedact.config.choice import Choice, choice_text
from fedact.config.errors import ConfigError
from fedact.config.plan import Plan, PlanKey, Plans
from fedact.config.schema import Config
from fedact.data import Loader, center_crop
from fedact.models.initialization import has_pictures_alone
from fedact.models.tasks import task_loss
from fedact.nn.surgery import apply, body_layers, calibrate, head, states
from fedact.planner import expected_error, make_plan
from fedact.planner.search import USUAL_DEPTH
from fedact.planner.trial_search import choose, usual_choice
from fedact.processes.pool import Workers
from fedact.processes.threads import one_thread
from fedact.training.experiment import Experiment
from fedact.training.recipe import keeps_received_weights
from fedact.training.trial import TrialFleet
from fedact.training.workspace import Workspace

log = logging.getLogger(__name__)

PRETRAINED_DEPTH = 2
"""Trained convolutions after pretraining here: deeper ones forget more of the classes that no client holds."""
FEWEST_EXAMPLES = 32
"""The server needs so many for a trial."""
TOLERANCE = 1.25
"""A plan is replaced where its gradient error has grown to more than so many times the expected one."""


def make_plans(workspace: Workspace, method: str) -> Plans:
    """Return one plan for each distinct budget, made from the server's own calibration examples."""
    example = calibration_batch(workspace.experiment)
    budgets = dict.fromkeys(workspace.experiment.config.client_budgets())
    return {PlanKey(budget): plan_for(workspace, method, budget, example) for budget in budgets}


def plan_for(
    workspace: Workspace,
    method: str,
    budget: int | None,
    example: tuple[Tensor, Tensor],
    layers: int | str | None = None,
    tensors: Mapping[str, Tensor] | None = None,
) -> Plan:
    """Return the plan for one budget, made from an example batch.

    layers: trained convolutions, by default the config's, or what was chosen with the learning rate. tensors: the global
    model's trained tensors, none before round 1.
    """
    config = workspace.experiment.config
    choice = choice_for(workspace) if layers is None else None
    plan = make_plan(
        workspace.model_with(tensors or {}),
        budget,
        example,
        method,
        config.layers if layers is None else layers,
        config.scope,
        config.max_slowdown,
        momentum=config.momentum > 0,
        train_norm=config.train_norm,
        loss=task_loss,
        most_layers=choice.layers if choice else None,
        recompute=config.recompute,
        update=config.update,
    )
    plan = replace(plan, copy_bytes=plan.gradient_bytes if keeps_received_weights(config) else 0)
    if choice is None or plan.status == "skipped":
        return plan
    return replace(plan, lr=choice.lr(plan.layers), trials=choice.trials)


def choice_for(workspace: Workspace, key: str = "", workers: Workers | None = None) -> Choice:
    """Return depth and learning rate of the run, given or chosen by trials on the server's own examples.

    workers: train for the trials too, in workspaces that they find by the key; by default this process does it alone.

    The trials are made once, on one thread, so that every process chooses the same. There are none where both were given,
    where the server has too few examples, or where the model was pretrained on them: these would only tell what it knows.
    """
    if workspace.choice is None:
        experiment, model = workspace.experiment, workspace.model_with({})
        config, count, has_head = experiment.config, len(body_layers(model)), bool(head(model))
        tried = config.weights != "pretrain" and len(experiment.calibration) >= FEWEST_EXAMPLES and config.rounds > 0
        if tried and "auto" in (config.layers, config.lr):
            started = time.monotonic()
            with one_thread():
                judge, lr = TrialFleet(workspace, key, workers).judge, None if config.lr == "auto" else config.lr
                workspace.choice = choose(judge, config.layers, count, lr, config.usual_lr, has_head)
            log.info(
                "%s, in %.0f s", choice_text(workspace.choice.trials, workspace.choice.layers), time.monotonic() - started
            )
        else:
            depth = PRETRAINED_DEPTH if config.weights == "pretrain" else USUAL_DEPTH
            workspace.choice = usual_choice(config.layers, count, config.usual_lr, depth)
    return workspace.choice


def replan_if_worse(workspace: Workspace, plan: Plan, tensors: Mapping[str, Tensor]) -> Plan:
    """Return a new plan for the same budget, method and layers where the gradient error has grown too much, else the plan.

    tensors: the global model's trained tensors, with which the error is measured on the server's own examples. Returned
    unchanged: skipped or exact plans, and uncalibrated ones without a budget. A new plan's error is at most what the old
    one's is now.
    """
    if plan.status == "skipped" or not plan.expected_error:
        return plan
    if plan.budget_bytes is None and not is_calibrated(plan):
        # Given settings that nothing bounds come out the same again.
        return plan
    example = calibration_batch(workspace.experiment)
    error = expected_error(workspace.model_with(tensors), plan, example, task_loss)
    if error <= TOLERANCE * plan.expected_error:
        return plan
    again = plan_for(workspace, plan.method, plan.budget_bytes, example, plan.layers, tensors)
    # Other layers than before would leave tensors without the clients that trained them; a search can also end worse.
    if again.status == "skipped" or again.layers != plan.layers or (again.expected_error or 0.0) > error:
        return plan
    # What was cut from the layers that were asked for is in the first plan's reason alone.
    layers = [part for part in (plan.reason or "").split("; ") if part.startswith("layers ")]
    reason = "; ".join([*layers, *([again.reason] if again.reason else [])]) or None
    again = replace(again, reason=reason, lr=plan.lr, trials=plan.trials)
    log.info(
        "%s, plan %s: gradient error %.3g instead of the planned %.3g; made again, it is %.3g",
        plan.method, PlanKey(plan.budget_bytes), error, plan.expected_error, again.expected_error,
    )  # fmt: skip
    return again


def calibration_batch(experiment: Experiment) -> tuple[Tensor, Tensor]:
    """Return a batch of the server's own examples, as large as those that clients train on."""
    config = experiment.config
    loader = Loader(experiment.calibration, experiment.preprocessing, config.device)
    return center_crop(*loader(np.resize(np.arange(len(loader)), config.batch_size)), config.crop)


def is_calibrated(plan: Plan) -> bool:
    """Return whether a method of the plan is calibrated once, on the server's own examples."""
    return any(kept_method(kept.method).traits.calibrated for kept in plan.kept)


def calibrated_states(workspace: Workspace, plan: Plan, tensors: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Return the states of the plan's calibrated methods, by layer and position; most methods have none.

    tensors: the global model's trained tensors when the plan was made.
    """
    if not is_calibrated(plan):
        return {}
    model = calibrate(apply(workspace.model_with(tensors or {}), plan), calibration_batch(workspace.experiment)[0])
    return {name: tensor.cpu() for name, tensor in states(model).items()}


def canonical_methods(config: Config) -> list[str]:
    """Return the methods' full names; raises ConfigError for one that is unknown or given twice in other words."""
    for text in config.method:
        if baseline := baseline_of(text):
            raise ConfigError(f"--method {text}: write --method {method_of(text)} --baseline {baseline}")
    methods = [choose_method(text) for text in config.method]
    for method in methods if config.layers != 0 else ():
        if isinstance(method, Method):
            check_for(method, SERIES, PICTURES)
            if type(method.for_dimensions(PICTURES)) is not type(method) and has_pictures_alone(config):
                check_for(method, PICTURES)
    names = [method_name(method) if isinstance(method, Method) else method for method in methods]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"method {name!r} is given twice; each may be given once")
    return names


def current_key(plans: Plans, budget: int | None, number: int) -> PlanKey:
    """Return the key of a budget's plan in a round: the last one made until then."""
    keys = (key for key in plans if key.budget_bytes == budget and key.first_round <= max(number, 1))
    return max(keys, key=lambda key: key.first_round)
