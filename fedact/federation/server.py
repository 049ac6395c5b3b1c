"""The server's side of Flower: choose the clients, send each its plan, average what they trained, write the round."""

import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from fedact.config.errors import NoReply
from fedact.config.plan import PlanKey
from fedact.config.strategies import make_strategy
from fedact.federation.aggregation import Aggregation
from fedact.federation.arrays import record_of, tensors_of
from fedact.federation.global_evaluation import evaluate_on_clients, evaluate_on_test_set
from fedact.federation.method_run import MethodRun, OnRound
from fedact.federation.replies import in_order, read_reply
from fedact.federation.traffic import Traffic
from fedact.models.tasks import Outcome
from fedact.storage import checkpoints
from fedact.storage.rows import Row
from fedact.training.forgetting import client_accuracy, forgotten, unheld_accuracy

__all__ = ["MethodRun", "OnRound", "PartialFedAvg", "extremes", "run_method"]

REPLY_TIMEOUT = 3600.0
"""How many seconds a round waits for real clients where no deadline is given: Flower's own."""


class PartialFedAvg(FedAvg):
    """FedAvg for clients that train different layers: our own draw of clients, a plan in each message, every row kept."""

    def __init__(self, run: MethodRun, first_round: int) -> None:
        super().__init__(min_train_nodes=1, min_available_nodes=1, min_evaluate_nodes=0)
        self.run = run
        self.offset = first_round - 1
        self.rows: list[Row] = []
        self.clients: dict[int, int] = {}
        self.arrays = ArrayRecord()
        self.states: dict[PlanKey, ArrayRecord] = {}
        self.trained_by: dict[str, int] = {}
        self.traffic = Traffic(run.experiment.start)
        self.aggregation = Aggregation(make_strategy(run.config.strategy))
        self.unheld_before: float | None = None
        self.started = time.monotonic()

    def resume(self, done: int, model: dict[str, torch.Tensor]) -> None:
        """Load the server optimizer's state after the last finished round; note what the model could do before the first."""
        rows = self.run.folder.rows()
        self.traffic.resume(row for row in rows if (row["kind"], row.get("method")) == ("client", self.run.method))
        self.unheld_before = self.run.folder.round_row(self.run.method, 0).get("unheld_accuracy")
        if self.aggregation.optimizer is not None:
            state = checkpoints.load(self.run.folder.server_state(self.run.method, done))
            self.aggregation.optimizer.load(state, model)

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        """Return one message for every chosen client that has a plan; a skipped one gets its row at once."""
        number, nodes = server_round + self.offset, sorted(grid.get_node_ids())
        self.started, self.arrays, self.rows, self.trained_by = time.monotonic(), arrays, [], {}
        self.run.book.replan(number, tensors_of(arrays))
        self.clients, messages = {}, []
        for client in self.run.chosen_clients(number):
            node = nodes[client % len(nodes)]
            if (row := self.run.missing_row(number, client)) is not None:
                self.rows.append(row)
            else:
                self.clients[node] = client
                order = self._order(number, client, arrays)
                self.traffic.note_order(client, order)
                messages.append(Message(order, node, "train"))
        return messages

    def _order(self, number: int, client: int, arrays: ArrayRecord) -> RecordDict:
        plan, config, fault = self.run.plan_of(client, number), self.run.config, self.run.fault_of(client, number)
        names = self.run.names_of(plan)
        corrupt = fault if fault and fault.kind == "corrupt" else None
        order = {
            "round": number, "client": client, "plan": plan.to_json(), "experiment": self.run.experiment_key,
            "start": self.run.experiment.start_digest,
            "privacy": config.privacy, "damage": corrupt.damage if corrupt else "",
            "damaged": names[int(corrupt.place * len(names))] if corrupt else "",
        }  # fmt: skip
        # On real devices the noise is their own: who knows the seed can take it away again.
        if str(config.runtime) != "flower":
            order["noise-seed"] = config.seed
        key = self.run.key_of(client, number)
        if key not in self.states:
            self.states[key] = record_of(self.run.book.states(key))
        parts = {"arrays": arrays, "states": self.states[key], "config": ConfigRecord(order)}  # type: ignore[arg-type]
        return RecordDict(parts)  # type: ignore[arg-type]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the next model's tensors; a client without a valid reply is a row with the reason and nothing else."""
        number, before = server_round + self.offset, tensors_of(self.arrays)
        collector = self.aggregation.collector()
        for client, reply in in_order(replies, self.clients):
            plan, (examples, held_out) = self.run.plan_of(client, number), self.run.examples_of(client)
            traffic = self.traffic.row(client, reply)
            expected = {name: before[name] for name in self.run.names_of(plan)}
            try:
                tensors, figures = read_reply(reply, expected, plan, examples, self.run.classes, held_out)
            except NoReply as error:
                self.rows.append(self.run.failure_row(number, client, error) | traffic)
            else:
                collector.add(tensors, figures["num_examples"])
                self.rows.append(self.run.reply_row(number, client, figures | traffic))
        self.rows.sort(key=lambda row: row["client"])
        self.trained_by = collector.trained_by(before)
        return record_of(self.aggregation.next_model(before, collector)), None

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Clients evaluate in the same message as they train."""
        return []

    def finish_round(self, server_round: int, arrays: ArrayRecord) -> MetricRecord:
        """Evaluate the global model where it is due, write its checkpoint, then the round's rows in one write."""
        number, tensors = server_round + self.offset, tensors_of(arrays)
        config = self.run.config
        due = number % config.evaluate_every == 0 or number == config.rounds
        # The checkpoint first: a round is finished once its rows are there, and then its tensors must be.
        folder, method = self.run.folder, self.run.method
        with ThreadPoolExecutor(1) as aside:
            saved = aside.submit(checkpoints.save, folder.checkpoint(method, number), tensors)
            measured = self._evaluate(number, arrays) if due else {}
            saved.result()
        row = {
            "kind": "round", "method": self.run.method, "seed": config.seed, "round": number, **measured,
            **extremes(self.rows), "trained_by": self.trained_by, "seconds": time.monotonic() - self.started,
        }  # fmt: skip
        if self.aggregation.optimizer is not None:
            checkpoints.save(folder.server_state(method, number), self.aggregation.optimizer.state())
        folder.append([*self.rows, row])
        folder.checkpoint(method, number - 1).unlink(missing_ok=True)
        folder.server_state(method, number - 1).unlink(missing_ok=True)
        self.run.on_round(row, self.rows)
        return MetricRecord({name: measured[name] for name in ("accuracy", "loss") if measured.get(name) is not None})

    def _outcome(self, number: int, arrays: ArrayRecord) -> Outcome:
        """Return the global model's outcome on the whole test set.

        Before round 1 it is the same model for every method: those whose plans run it by the same operations share it.
        """
        run, plan = self.run, self.run.deepest_plan
        known = run.workspace.start_outcomes if number == 0 else {}
        key = None if plan is None else (plan.layers, plan.method == "vanilla", plan.room_bytes is None)
        if key not in known:
            known[key] = evaluate_on_test_set(run.workspace, run.experiment_key, plan, arrays, run.records)
        return known[key]

    def _evaluate(self, number: int, arrays: ArrayRecord) -> Row:
        """Return the global model's scores after a round, on the whole test set and on its parts."""
        held, found = self.run.experiment.held, self._outcome(number, arrays)
        unheld = unheld_accuracy(found, held)
        if number == 0:
            self.unheld_before = unheld
        return {
            "accuracy": found.score, "client_accuracy": client_accuracy(found, held), "unheld_accuracy": unheld,
            "forgotten": forgotten(self.unheld_before, unheld), "test_examples": len(self.run.experiment.test),
            "class_iou": found.class_iou, "loss": found.loss, **self._on_held_out_clients(arrays),
        }  # fmt: skip

    def _on_held_out_clients(self, arrays: ArrayRecord) -> Row:
        """Return the global model's scores on the clients that take no part in training; nothing where there are none."""
        run, held_out = self.run, self.run.experiment.held_out
        if held_out is None:
            return {}
        plan, parts = run.deepest_plan, held_out.parts
        found, each = evaluate_on_clients(run.workspace, run.experiment_key, plan, arrays, run.records, "held_out", parts)
        return {
            "held_out_client_accuracy": found.score,
            "worst_held_out_client_accuracy": min((one.score for one in each if one.score is not None), default=None),
            "held_out_client_examples": len(held_out.examples),
        }


def extremes(rows: list[Row]) -> Row:
    """Return a round's figures over its clients: least accuracy, most saved and peak bytes, number of clients."""

    def known(name: str) -> list[Any]:
        return [row[name] for row in rows if row.get(name) is not None]

    return {
        "worst_client_accuracy": min(known("accuracy"), default=None),
        "saved_bytes_max": max(known("saved_bytes"), default=None),
        "peak_bytes_max": max(known("peak_bytes"), default=None),
        "clients": len(rows),
    }


def run_method(grid: Grid, run: MethodRun, done: int | None) -> None:
    """Run the rounds of a method that are left; done: the last finished one, None before round 0."""
    if done is not None and done >= run.config.rounds:
        return
    start = run.start()
    strategy = PartialFedAvg(run, first_round=(done or 0) + 1)
    if done is not None:
        start = checkpoints.load_like(run.folder.checkpoint(run.method, done), start)
        strategy.resume(done, start)

    def after_round(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        resumed_start = server_round == 0 and done is not None
        return None if resumed_start else strategy.finish_round(server_round, arrays)

    rounds, timeout = run.config.rounds - (done or 0), run.config.deadline or REPLY_TIMEOUT
    strategy.start(grid, record_of(start), num_rounds=rounds, timeout=timeout, evaluate_fn=after_round)
