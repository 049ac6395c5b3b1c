"""One method's plans by round: which one is in force, and when they are checked against the trained weights."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from fedact.config.plan import PlanKey, Plans, plans_json
from fedact.federation.plan_check import check_states
from fedact.federation.plan_tasks import replan_all
from fedact.federation.planning import calibrated_states, current_key, is_calibrated
from fedact.processes.pool import Workers
from fedact.storage import checkpoints
from fedact.storage.disk import write_whole
from fedact.storage.run_folder import RunFolder
from fedact.training.workspace import Workspace


def is_due(replan: int | str, number: int) -> bool:
    """Return whether plans are checked before a round, which counts from 1.

    replan: ``auto`` before rounds 2, 3, 5, 9, 17 and so on (spectra move fastest at the start), N before every N-th round,
    ``never``. The first round's plans are new.
    """
    if number < 2 or replan == "never":
        return False
    return (number - 1).bit_count() == 1 if replan == "auto" else number % int(replan) == 0


@dataclass(frozen=True, eq=False)
class PlanBook:
    """One method's plans, by the round they were made before.

    all_plans: every method's, for plans.json is written whole. workers: look at plans, in workspaces found by the key.
    """

    method: str
    workspace: Workspace
    folder: RunFolder
    all_plans: dict[str, Plans]
    key: str = ""
    workers: Workers = field(default_factory=lambda: Workers(1))

    @property
    def plans(self) -> Plans:
        return self.all_plans[self.method]

    def key_of(self, budget: int | None, number: int) -> PlanKey:
        """Return the key of the plan that a budget has in a round."""
        return current_key(self.plans, budget, number)

    def states(self, key: PlanKey) -> dict[str, Tensor]:
        """Return the states that a plan's methods were calibrated to when it was made, by layer and position."""
        plan, file = self.plans[key], self.folder.states(self.method, key)
        # A first plan's are computed again: they follow from the initial weights alone.
        if key.first_round == 1 or not is_calibrated(plan):
            return calibrated_states(self.workspace, plan)
        found = checkpoints.load(file)
        check_states(self.workspace, found, plan, file)
        return found

    def replan(self, number: int, tensors: Mapping[str, Tensor]) -> None:
        """Replace the plans that have aged, before a round, and write plans.json before any is used.

        tensors: the global model's trained tensors. A plan that is there for this round already is a resumed run's.
        """
        if not is_due(self.workspace.experiment.config.replan, number):
            return
        budgets = dict.fromkeys(key.budget_bytes for key in self.plans)
        keys = [key for key in (PlanKey(budget, number) for budget in budgets) if key not in self.plans]
        aged = [self.plans[self.key_of(key.budget_bytes, number)] for key in keys]
        again = replan_all(self.workspace, self.key, aged, tensors, self.workers)
        made = {key: plan for key, plan in zip(keys, again, strict=True) if plan is not None}
        for key, plan in made.items():
            if states := calibrated_states(self.workspace, plan, tensors):
                checkpoints.save(self.folder.states(self.method, key), states)
        self.plans.update(made)
        if made:
            write_whole(self.folder.plans, plans_json(self.all_plans))
