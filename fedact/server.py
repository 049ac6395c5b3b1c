"""The server's side of Flower: choose the clients, send each its plan, average what they trained, write the round."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from fedact import checkpoints
from fedact.averaging import RunningMean
from fedact.client import figures_of
from fedact.config import Config
from fedact.experiment import Experiment
from fedact.plans import Plan
from fedact.records import Row, RunFolder
from fedact.replanning import PlanBook
from fedact.reuse import test_batches
from fedact.seeds import Purpose, generator
from fedact.surgery import apply, trained_parameters
from fedact.training import evaluate

OnRound = Callable[[Row, list[Row]], None]


@dataclass(frozen=True, eq=False)
class MethodRun:
    """One method's way through the rounds: what every round needs and none changes."""

    method: str
    config: Config
    experiment: Experiment
    experiment_key: str
    book: PlanBook
    folder: RunFolder
    on_round: OnRound

    @cached_property
    def budgets(self) -> tuple[int | None, ...]:
        return self.config.client_budgets()

    def key_of(self, client: int, number: int) -> str:
        return self.book.key(self.budgets[client], number)

    def plan_of(self, client: int, number: int) -> Plan:
        return self.book.plans[self.key_of(client, number)]

    @cached_property
    def deepest_plan(self) -> Plan | None:
        """The first plan that trains the most layers, None where every client is skipped."""
        plans = [plan for plan in self.book.plans.values() if plan.status != "skipped"]
        return max(plans, key=lambda plan: plan.layers, default=None)

    def chosen_clients(self, number: int) -> list[int]:
        """Return who trains in a round: drawn from our own seeds, the same for every method."""
        count = max(1, round(self.config.sample_fraction * self.config.clients))
        random = generator(self.config.seed, Purpose.CLIENT_SAMPLE, number)
        return sorted(int(client) for client in random.choice(self.config.clients, count, replace=False))

    def start(self) -> ArrayRecord:
        """Return the start of every tensor that some plan trains."""
        model = self.experiment.model_with({})
        names = {name for plan in self.book.plans.values() for name in trained_parameters(apply(model, plan))}
        return ArrayRecord({name: tensor for name, tensor in self.experiment.start.items() if name in names})

    def row(self, number: int, client: int, status: str, reason: str | None = None, **figures: Any) -> Row:
        """Return a client's row of a round; what was not measured stays null."""
        plan = self.plan_of(client, number)
        return {
            "kind": "client", "method": self.method, "seed": self.config.seed, "round": number, "client": client,
            "status": status, "reason": reason, "budget_bytes": plan.budget_bytes, "plan": self.key_of(client, number),
            "trained_layers": plan.layers, "micro_batch": plan.micro_batch,
            "num_examples": len(self.experiment.parts[client][0]), **figures,
        }  # fmt: skip


class PartialFedAvg(FedAvg):
    """FedAvg for clients that train different layers: our own draw of clients, a plan in each message, every row kept."""

    def __init__(self, run: MethodRun, first_round: int) -> None:
        super().__init__(min_train_nodes=1, min_available_nodes=1, min_evaluate_nodes=0)
        self.run = run
        self.offset = first_round - 1
        self.rows: list[Row] = []
        self.clients: dict[int, int] = {}
        self.arrays = ArrayRecord()
        self.states: dict[str, ArrayRecord] = {}
        self.trained_by: dict[str, int] = {}
        self.started = time.monotonic()

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        """Return one message for every chosen client that has a plan; a skipped one gets its row at once."""
        number, nodes = server_round + self.offset, sorted(grid.get_node_ids())
        self.started, self.arrays, self.rows, self.trained_by = time.monotonic(), arrays, [], {}
        self.run.book.look(number, arrays.to_torch_state_dict())
        chosen = self.run.chosen_clients(number)
        self.clients = {nodes[client % len(nodes)]: client for client in chosen}
        messages = []
        for node, client in self.clients.items():
            plan = self.run.plan_of(client, number)
            if plan.status == "skipped":
                self.rows.append(self.run.row(number, client, "skipped", plan.reason, seconds=0.0))
            else:
                messages.append(Message(self._order(number, client, plan, arrays), node, "train"))
        return messages

    def _order(self, number: int, client: int, plan: Plan, arrays: ArrayRecord) -> RecordDict:
        order = {
            "round": number, "client": client, "plan": plan.to_json(), "experiment": self.run.experiment_key
        }  # fmt: skip
        states = self._states(self.run.key_of(client, number))
        parts = {"arrays": arrays, "states": states, "config": ConfigRecord(order)}  # type: ignore[arg-type]
        return RecordDict(parts)  # type: ignore[arg-type]

    def _states(self, key: str) -> ArrayRecord:
        if key not in self.states:
            self.states[key] = ArrayRecord(self.run.book.states(key))
        return self.states[key]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Fold the replies into the mean as they come; a client that failed is a row with its reason."""
        number, mean = server_round + self.offset, RunningMean()
        for reply in replies:
            client = self.clients[reply.metadata.src_node_id]
            if reply.has_error():
                self.rows.append(self.run.row(number, client, "failed", reply.error.reason))
                continue
            figures = figures_of(reply)
            mean.add(reply.content["arrays"].to_torch_state_dict(), int(figures["num_examples"]))  # type: ignore[union-attr]
            plan = self.run.plan_of(client, number)
            self.rows.append({**self.run.row(number, client, plan.status, plan.reason), **figures})
        self.rows.sort(key=lambda row: row["client"])
        before = self.arrays.to_torch_state_dict()
        self.trained_by = mean.trained_by(before)
        return ArrayRecord(mean.over(before)), None

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Clients evaluate in the same message as they train."""
        return []

    def finish_round(self, server_round: int, arrays: ArrayRecord) -> MetricRecord:
        """Evaluate the global model where it is due, keep it, and write the round's rows in one go."""
        number, tensors = server_round + self.offset, arrays.to_torch_state_dict()
        measured = self._evaluate(tensors) if self._is_evaluated(number) else {}
        row = {
            "kind": "round", "method": self.run.method, "seed": self.run.config.seed, "round": number, **measured,
            **extremes(self.rows), "trained_by": self.trained_by, "seconds": time.monotonic() - self.started,
        }  # fmt: skip
        # The checkpoint first: a round is finished once its rows are there, and then its tensors must be.
        checkpoints.save(self.run.folder.checkpoint(self.run.method, number), tensors)
        self.run.folder.append([*self.rows, row])
        self.run.folder.checkpoint(self.run.method, number - 1).unlink(missing_ok=True)
        self.run.on_round(row, self.rows)
        return MetricRecord({**measured})

    def _is_evaluated(self, number: int) -> bool:
        config = self.run.config
        return number % config.evaluate_every == 0 or number == config.rounds

    def _evaluate(self, tensors: dict[str, torch.Tensor]) -> dict[str, float]:
        experiment, plan = self.run.experiment, self.run.deepest_plan
        # The frozen part under the plan that trains the most is frozen under every plan.
        model = experiment.model_with(tensors) if plan is None else experiment.model_under(plan, tensors)
        accuracy, loss = evaluate(model, test_batches(experiment, plan), len(experiment.test))
        return {"accuracy": accuracy, "loss": loss}


def extremes(rows: list[Row]) -> Row:
    """Return what a round's row says of its clients: the worst and the largest of them, and their number."""

    def known(name: str) -> list[Any]:
        return [row[name] for row in rows if row.get(name) is not None]

    return {
        "worst_client_accuracy": min(known("accuracy"), default=None),
        "saved_bytes_max": max(known("saved_bytes"), default=None),
        "peak_bytes_max": max(known("peak_bytes"), default=None),
        "clients": len(rows),
    }


def run_method(grid: Grid, run: MethodRun, done: int | None) -> None:
    """Take a method through its rounds; ``done`` is the last finished one, None before round 0."""
    if done is not None and done >= run.config.rounds:
        return
    start = run.start()
    if done is not None:
        saved = checkpoints.load(run.folder.checkpoint(run.method, done))
        start = ArrayRecord({name: saved.get(name, tensor) for name, tensor in start.to_torch_state_dict().items()})
    strategy = PartialFedAvg(run, first_round=(done or 0) + 1)

    def after_round(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        resumed_start = server_round == 0 and done is not None
        return None if resumed_start else strategy.finish_round(server_round, arrays)

    strategy.start(grid, start, num_rounds=run.config.rounds - (done or 0), evaluate_fn=after_round)
