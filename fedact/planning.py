"""The plans of a run: made once by the server for every distinct budget, from its own examples, and written down."""

import json

import numpy as np
import torch

from fedact.compression import Method, check_for_images, choose_method, make_method, method_name
from fedact.config import Config
from fedact.data import Loader
from fedact.errors import ConfigError
from fedact.experiment import Experiment
from fedact.planner import make_plan
from fedact.plans import Plan
from fedact.records import Row
from fedact.surgery import apply, calibrate, states

Plans = dict[int | None, Plan]


def make_plans(experiment: Experiment, method: str) -> Plans:
    """Return one plan for each distinct budget, made from the server's own calibration examples."""
    example = calibration_batch(experiment)
    budgets = dict.fromkeys(experiment.config.client_budgets())
    return {budget: plan_for(experiment, method, budget, example) for budget in budgets}


def plan_for(
    experiment: Experiment,
    method: str,
    budget: int | None,
    example: tuple[torch.Tensor, torch.Tensor],
    max_slowdown: float | None = None,
) -> Plan:
    """Return the plan for one budget, made from an example batch."""
    config = experiment.config
    return make_plan(
        experiment.model_with({}),
        budget,
        example,
        method,
        config.layers,
        config.scope,
        max_slowdown,
        momentum=config.momentum > 0,
        train_norm=config.train_norm,
    )


def calibration_batch(experiment: Experiment) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a batch of the server's own examples."""
    loader = Loader(experiment.calibration, experiment.preprocessing, experiment.config.device)
    return loader(np.resize(np.arange(len(loader)), experiment.config.batch_size))


def calibrated_states(experiment: Experiment, plan: Plan) -> dict[str, torch.Tensor]:
    """Return the states that the plan's methods find once, on the server's own examples; most methods have none."""
    if not any(make_method(kept.method).calibrated for kept in plan.kept):
        return {}
    model = calibrate(apply(experiment.model_with({}), plan), calibration_batch(experiment)[0])
    return {name: tensor.cpu() for name, tensor in states(model).items()}


def canonical_methods(config: Config) -> list[str]:
    """Return the methods' full names; raises ConfigError for one that is unknown or given twice in other words."""
    methods = [choose_method(text) for text in config.method]
    for method in methods if config.layers != 0 else ():
        if isinstance(method, Method):
            check_for_images(method)
    names = [method_name(method) if isinstance(method, Method) else method for method in methods]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"method {name!r} is given twice; each may be given once")
    return names


def plan_key(budget: int | None) -> str:
    """Return the name of a budget's plan in plans.json."""
    return "none" if budget is None else str(budget)


def plans_json(plans: dict[str, Plans]) -> str:
    """Return plans.json: by method and budget in bytes."""
    by_method = {
        method: {plan_key(budget): json.loads(plan.to_json()) for budget, plan in by_budget.items()}
        for method, by_budget in plans.items()
    }
    return json.dumps(by_method, indent=1) + "\n"


def plans_from_json(by_method: dict[str, dict[str, Row]]) -> dict[str, Plans]:
    """Return the plans behind ``plans_json``; raises ConfigError for what is no plan."""
    plans = {m: [Plan.from_json(json.dumps(plan)) for plan in by.values()] for m, by in by_method.items()}
    return {method: {plan.budget_bytes: plan for plan in made} for method, made in plans.items()}
