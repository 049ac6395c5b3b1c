"""One method's rounds: the plan, the simulated fault and the row of every client in every round."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

from torch import Tensor

from fedact.config.baselines import CENTRAL, baseline_of
from fedact.config.budgets import largest_budget
from fedact.config.errors import BadReply, NoReply
from fedact.config.faults import Fault, Faults, draw_fault, make_faults
from fedact.config.natural import natural_clients
from fedact.config.plan import Plan, PlanKey
from fedact.config.schema import Config
from fedact.config.seeds import Purpose, generator
from fedact.federation.replanning import PlanBook
from fedact.federation.shared_records import SharedRecords
from fedact.storage.rows import Row
from fedact.storage.run_folder import RunFolder
from fedact.training.experiment import Experiment
from fedact.training.workspace import Workspace

OnRound = Callable[[Row, list[Row]], None]


@dataclass(frozen=True, eq=False)
class MethodRun:
    """What every round of a method, or of a baseline of it, needs and none changes.

    method: as its rows name it. config: of a baseline without what a server does, see ``config.baselines``.
    experiment_key: the config as JSON, by which workers find their workspace. on_round: called with a round's row and its
    clients' rows once they are written. records: for the workers that evaluate the model.
    """

    method: str
    config: Config
    workspace: Workspace
    experiment_key: str
    book: PlanBook
    folder: RunFolder
    on_round: OnRound
    records: SharedRecords

    @property
    def experiment(self) -> Experiment:
        return self.workspace.experiment

    @cached_property
    def baseline(self) -> str | None:
        """The baseline that these rounds are of, None where clients federate."""
        return baseline_of(self.method)

    @cached_property
    def budgets(self) -> tuple[int | None, ...]:
        """Each client's budget in bytes, None for no bound; who holds all examples has the largest."""
        budgets = self.config.client_budgets()
        return (largest_budget(budgets),) if self.baseline == CENTRAL else budgets

    @cached_property
    def faults(self) -> Faults:
        return make_faults(self.config.faults)

    @cached_property
    def _examples(self) -> list[tuple[int, int]]:
        """On how many examples each client trains, and how many it holds out."""
        training, held_out = (sizes.tolist() for sizes in self.experiment.parts.sizes())
        return list(zip(training, held_out, strict=True))

    @cached_property
    def _fewest_examples(self) -> int:
        """A client that holds fewer is skipped: of a natural partition some may, and nobody gives them any."""
        rule = natural_clients(self.config.partition)
        return rule.min_partition_size if rule else 1

    @property
    def classes(self) -> int | None:
        """Number of classes for which a client reports an IoU, None for classification."""
        return len(self.experiment.classes) if self.config.task == "segmentation" else None

    def key_of(self, client: int, number: int) -> PlanKey:
        """Return the key of a client's plan in a round."""
        return self.book.key_of(self.budgets[client], number)

    def plan_of(self, client: int, number: int) -> Plan:
        """Return a client's plan in a round."""
        return self.book.plans[self.key_of(client, number)]

    @cached_property
    def deepest_plan(self) -> Plan | None:
        """The first plan that trains the most layers, None where every client is skipped."""
        plans = [plan for plan in self.book.plans.values() if plan.status != "skipped"]
        return max(plans, key=lambda plan: plan.layers, default=None)

    def pool(self, number: int) -> list[int]:
        """Return the clients whose examples lie in one place in a round: those that would train in it; else none."""
        return self.drawn_clients(number) if self.baseline == CENTRAL else []

    def chosen_clients(self, number: int) -> list[int]:
        """Return the numbers of the clients that are sent an order in a round, rising."""
        return [0] if self.baseline == CENTRAL else self.drawn_clients(number)

    def drawn_clients(self, number: int) -> list[int]:
        """Return the numbers of the clients that train in a round, rising; the same for every method."""
        count = max(1, round(self.config.sample_fraction * self.config.fleet_size))
        random = generator(self.config.seed, Purpose.CLIENT_SAMPLE, number)
        return sorted(int(client) for client in random.choice(self.config.fleet_size, count, replace=False))

    def names_of(self, plan: Plan) -> list[str]:
        """Return the names of the tensors that a plan trains."""
        return self.workspace.trained_by(plan)

    def examples_of(self, client: int, number: int) -> tuple[int, int]:
        """Return on how many examples a client trains in a round, and how many it holds out."""
        training, held_out = zip(*(self._examples[each] for each in self.pool(number) or [client]), strict=True)
        return sum(training), sum(held_out)

    def raw_bytes(self, client: int) -> int:
        """Return what a client's training examples take as they are: their images, not compressed, and labels or masks."""
        train = self.experiment.train
        images, masks = train.images, train.masks
        targets = 8 if masks is None else prod(masks.shape[1:]) * masks.dtype.itemsize
        return self._examples[client][0] * (prod(images.shape[1:]) * images.dtype.itemsize + targets)

    def too_few(self, client: int, number: int) -> str | None:
        """Return why a client has too few examples to train, None where it has enough."""
        examples = sum(self.examples_of(client, number))
        if examples >= self._fewest_examples:
            return None
        return (
            f"it holds {examples} examples, min_partition_size is {self._fewest_examples}"
            if examples
            else "it holds no example"
        )

    def fault_of(self, client: int, number: int) -> Fault | None:
        """Return the simulated fault of a client in a round."""
        return draw_fault(self.faults, self.config.seed, number, client)

    def start(self) -> dict[str, Tensor]:
        """Return the initial weights of every tensor that some plan trains."""
        names = dict.fromkeys(name for plan in self.book.plans.values() for name in self.names_of(plan))
        return self.workspace.start_of(names)

    def row(self, number: int, client: int, status: str, reason: str | None = None, **figures: Any) -> Row:
        """Return a client's row of a round; what was not measured stays null."""
        plan = self.plan_of(client, number)
        return {
            "kind": "client", "method": self.method, "seed": self.config.seed, "round": number, "client": client,
            "status": status, "reason": reason, "budget_bytes": plan.budget_bytes, "plan": str(self.key_of(client, number)),
            "trained_layers": plan.layers, "micro_batch": plan.micro_batch, "recompute": plan.recompute,
            "update": plan.update, "floor_bytes": plan.floor_bytes,
            "device_bytes": plan.device_bytes_at(figures.get("peak_bytes")),
            "num_examples": self.examples_of(client, number)[0], **figures,
        }  # fmt: skip

    def missing_row(self, number: int, client: int) -> Row | None:
        """Return the row of a client that is sent no order (skipped, vanished or too late), None where one is sent."""
        plan, fault = self.plan_of(client, number), self.fault_of(client, number)
        if (reason := self.too_few(client, number)) or plan.status == "skipped":
            return self.row(number, client, "skipped", reason or plan.reason, seconds=0.0)
        reason = fault.loss_reason(self.config.deadline) if fault else None
        return self.row(number, client, "failed", reason, fault=fault.kind) if fault and reason else None

    def reply_row(self, number: int, client: int, figures: Row) -> Row:
        """Return the row of a client whose update counts; simulated lag is added to its seconds."""
        plan, fault = self.plan_of(client, number), self.fault_of(client, number)
        if fault is None:
            return self.row(number, client, plan.status, plan.reason, **figures)
        lag = fault.lag if fault.kind == "slow" else 0.0
        lag_text = f"{lag:.1f} s of simulated lag"
        reason = f"{plan.reason}; {lag_text}" if plan.reason else lag_text
        return self.row(number, client, plan.status, reason, fault=fault.kind, **figures) | {
            "seconds": figures["seconds"] + lag
        }

    def failure_row(self, number: int, client: int, error: NoReply) -> Row:
        """Return the row of a client without a valid reply; it names a simulated fault where that is the cause."""
        fault = self.fault_of(client, number)
        kind = fault.kind if fault and fault.kind == "corrupt" and isinstance(error, BadReply) else None
        return self.row(number, client, "failed", str(error), fault=kind, traceback=error.traceback)
