"""The plans of several methods and budgets at once: each is made, or made again, by whichever process is free."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from fedact.config.choice import Choice
from fedact.config.plan import Plan, PlanKey, Plans
from fedact.federation.planning import calibration_batch, choice_for, make_plans, plan_for, replan_if_worse
from fedact.processes.pool import Workers
from fedact.training.workspace import Workspace, workspace_of


@dataclass(frozen=True)
class PlanTask:
    """One plan to make.

    key: of the workspace, by which a process finds its own. choice: of depth and learning rate, made once for all plans.
    budget: in bytes.
    """

    key: str
    choice: Choice
    method: str
    budget: int | None


def make_all_plans(workspace: Workspace, key: str, methods: Sequence[str], workers: Workers) -> dict[str, Plans]:
    """Return each method's plans, one for each distinct budget, the same whichever processes make them."""
    if workers.count == 1 or not methods:
        return {method: make_plans(workspace, method) for method in methods}
    budgets = list(dict.fromkeys(workspace.experiment.config.client_budgets()))
    plans = make_each(workspace, key, [(method, budget) for method in methods for budget in budgets], workers)
    return {method: {PlanKey(budget): plans[method, budget] for budget in budgets} for method in methods}


def make_each(
    workspace: Workspace, key: str, wanted: Sequence[tuple[str, int | None]], workers: Workers
) -> dict[tuple[str, int | None], Plan]:
    """Return the plan for each of some methods and budgets in bytes, each made once."""
    choice, example = choice_for(workspace, key, workers), calibration_batch(workspace.experiment)
    if workers.count == 1 or len(wanted) == 1:
        return {each: plan_for(workspace, *each, example) for each in wanted}
    tasks = [PlanTask(key, choice, method, budget) for method, budget in wanted]
    return dict(zip(wanted, workers.results(plan_of_task, tasks), strict=True))


def plan_of_task(task: PlanTask) -> Plan:
    """Return the plan of a task, made in this process's workspace."""
    workspace = workspace_of(task.key)
    workspace.choice = task.choice
    return plan_for(workspace, task.method, task.budget, calibration_batch(workspace.experiment))


@dataclass(frozen=True, eq=False)
class AgedPlan:
    """A plan to make again if it is worse by now. key: as of ``PlanTask``. tensors: the global model's trained ones."""

    key: str
    plan: Plan
    tensors: Mapping[str, Tensor]


def replan_all(
    workspace: Workspace, key: str, plans: Sequence[Plan], tensors: Mapping[str, Tensor], workers: Workers
) -> list[Plan | None]:
    """Return a new plan in place of each that is worse by now, else None; the same whichever processes look at them."""
    if workers.count == 1 or len(plans) == 1:
        return [_new_plan(workspace, plan, tensors) for plan in plans]
    return list(workers.results(replan, [AgedPlan(key, plan, tensors) for plan in plans]))


def replan(aged: AgedPlan) -> Plan | None:
    """Look at a plan in this process's workspace; returns as ``replan_all``."""
    return _new_plan(workspace_of(aged.key), aged.plan, aged.tensors)


def _new_plan(workspace: Workspace, plan: Plan, tensors: Mapping[str, Tensor]) -> Plan | None:
    # One that comes out the same again is new too: what its methods are calibrated to is.
    return None if (again := replan_if_worse(workspace, plan, tensors)) is plan else again
