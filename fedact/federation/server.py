"""The server's side of Flower: choose the clients, send each its plan, average what they trained, write the round."""

import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from fedact.config.baselines import CENTRAL, LOCAL
from fedact.config.errors import NoReply
from fedact.config.plan import PlanKey
from fedact.config.strategies import make_strategy
from fedact.federation.aggregation import Aggregation
from fedact.federation.arrays import record_of, tensors_of
from fedact.federation.method_run import MethodRun, OnRound
from fedact.federation.own_models import OwnModels
from fedact.federation.replies import in_order, read_reply
from fedact.federation.round_scores import RoundScores, spread
from fedact.federation.traffic import TRAFFIC
from fedact.storage import checkpoints
from fedact.storage.rows import Row

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
        self.traffic = TRAFFIC[run.baseline](run.experiment.start)
        self.aggregation = Aggregation(make_strategy(run.config.strategy))
        self.own = OwnModels(run.folder, run.method) if run.baseline == LOCAL else None
        self.scores = RoundScores(run, self.own)
        self.started = time.monotonic()

    def resume(self, done: int, model: dict[str, torch.Tensor]) -> None:
        """Load the server optimizer's state after the last finished round; note what the model could do before the first."""
        rows = self.run.folder.rows()
        self.traffic.resume(row for row in rows if (row["kind"], row.get("method")) == ("client", self.run.method))
        self.scores.unheld_before = self.run.folder.round_row(self.run.method, 0).get("unheld_accuracy")
        self.traffic.holders.update(*map(self.run.pool, range(1, done + 1)))
        if self.own is not None:
            self.own.resume(done)
        if self.aggregation.optimizer is not None:
            state = checkpoints.load(self.run.folder.server_state(self.run.method, done))
            self.aggregation.optimizer.load(state, model)

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        """Return one message for every chosen client that has a plan; a skipped one gets its row at once."""
        number, nodes = server_round + self.offset, sorted(grid.get_node_ids())
        self.started, self.arrays, self.rows, self.trained_by = time.monotonic(), arrays, [], {}
        if self.own is None:
            # A plan is made anew by the global model, and who trains alone has none.
            self.run.book.replan(number, tensors_of(arrays))
        self.clients, messages = {}, []
        for client in self.run.chosen_clients(number):
            node = nodes[client % len(nodes)]
            if (row := self.run.missing_row(number, client)) is not None:
                self.rows.append(row)
            else:
                self.clients[node] = client
                order = self._order(number, client, self._model_of(client))
                self.traffic.note_order(client, order, {each: self.run.raw_bytes(each) for each in self.run.pool(number)})
                messages.append(Message(order, node, "train"))
        return messages

    def _model_of(self, client: int) -> ArrayRecord:
        """Return the model that a client goes on with: the global one, or its own."""
        return self.arrays if self.own is None else record_of(self.own.tensors(client, tensors_of(self.arrays)))

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
        if self.run.baseline is not None:
            pool = self.run.pool(number)
            order |= {"baseline": self.run.baseline, **({"pool": pool} if pool else {})}
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
            plan, (examples, held_out) = self.run.plan_of(client, number), self.run.examples_of(client, number)
            traffic = self.traffic.row(client, reply)
            expected = {name: before[name] for name in self.run.names_of(plan)}
            try:
                tensors, figures = read_reply(reply, expected, plan, examples, self.run.classes, held_out)
            except NoReply as error:
                self.rows.append(self.run.failure_row(number, client, error) | traffic)
            else:
                collector.add(tensors, figures["num_examples"])
                if self.own is not None:
                    self.own.keep(client, number, tensors)
                self.rows.append(self.run.reply_row(number, client, figures | traffic))
        self.rows.sort(key=lambda row: row["client"])
        self.trained_by = collector.trained_by(before)
        return (record_of(self.aggregation.next_model(before, collector)) if self.own is None else self.arrays), None

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
            saved = None if self.own else aside.submit(checkpoints.save, folder.checkpoint(method, number), tensors)
            measured = self.scores.of(number, arrays) if due else {}
            if saved is not None:
                saved.result()
        row = {
            "kind": "round", "method": self.run.method, "seed": config.seed, "round": number,
            **extremes(self.rows, each_its_own=self.run.baseline != CENTRAL), **measured, "trained_by": self.trained_by,
            "seconds": time.monotonic() - self.started,
        }  # fmt: skip
        if self.aggregation.optimizer is not None:
            checkpoints.save(folder.server_state(method, number), self.aggregation.optimizer.state())
        folder.append([*self.rows, row])
        if self.own is not None:
            self.own.prune()
        folder.checkpoint(method, number - 1).unlink(missing_ok=True)
        folder.server_state(method, number - 1).unlink(missing_ok=True)
        self.run.on_round(row, self.rows)
        return MetricRecord({name: measured[name] for name in ("accuracy", "loss") if measured.get(name) is not None})


def extremes(rows: list[Row], each_its_own: bool = True) -> Row:
    """Return a round's figures over its clients: least and mean accuracy, most saved and peak bytes, number of clients.

    each_its_own: whether an accuracy is that of one client's model on its own examples.
    """

    def known(name: str) -> list[Any]:
        return [row[name] for row in rows if row.get(name) is not None]

    return {
        **spread(known("accuracy") if each_its_own else []),
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
        if strategy.own is None:
            start = checkpoints.load_like(run.folder.checkpoint(run.method, done), start)
        strategy.resume(done, start)

    def after_round(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        resumed_start = server_round == 0 and done is not None
        return None if resumed_start else strategy.finish_round(server_round, arrays)

    rounds, timeout = run.config.rounds - (done or 0), run.config.deadline or REPLY_TIMEOUT
    strategy.start(grid, record_of(start), num_rounds=rounds, timeout=timeout, evaluate_fn=after_round)
