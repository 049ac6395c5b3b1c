"""Runs the same ClientApp and ServerApp in this process; every private touch of Flower is in this file."""

import logging
import sys
import time
import traceback
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedact import client
from fedact.config import Config
from fedact.errors import ConfigError
from fedact.experiment import Experiment, shared
from fedact.planning import Plans, canonical_methods, make_plans, plan_key, plans_from_json, plans_json
from fedact.records import SCHEMA, Row, RunFolder, write_whole
from fedact.replanning import PlanBook
from fedact.server import MethodRun, OnRound, run_method

RUN_ID = 1
SERVER_NODE = 1
CLIENT_RAISED = 2
"""Flower's code for an exception in a ClientApp."""
PACKAGES = ("fedact", "flwr", "torch", "torchvision", "numpy", "tensorly")


class LocalGrid(Grid):
    """Calls a ClientApp in this process, one message after another: deterministic, and no process to start."""

    def __init__(self, app: ClientApp, clients: int) -> None:
        # A message takes its run and its sender from here; Flower's own runtimes set the same three.
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, RUN_ID, SERVER_NODE
        logging.getLogger("flwr").setLevel(logging.WARNING)
        self.app = app
        self.node_ids = range(SERVER_NODE + 1, SERVER_NODE + 1 + clients)
        self.replies: dict[str, Message] = {}
        self.pushed = 0

    def set_run(self, run: Run) -> None:
        raise NotImplementedError("a local run is set when the grid is made")

    @property
    def run(self) -> Run:
        return Run.create_empty(RUN_ID)

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> Iterable[int]:
        return self.node_ids

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        names = []
        for message in messages:
            self.pushed += 1
            names.append(str(self.pushed))
            self.replies[names[-1]] = self._reply(message)
        return names

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self.replies.pop(name) for name in message_ids if name in self.replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Yield each reply as soon as it is there, so that no two need be kept at once."""
        yield from map(self._reply, messages)

    def _reply(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        context = Context(RUN_ID, node, {"partition-id": node - SERVER_NODE - 1}, RecordDict(), {})
        try:
            return self.app(message, context)
        except Exception as error:
            logging.getLogger(__name__).debug(traceback.format_exc())
            return Message(Error(CLIENT_RAISED, f"{type(error).__name__}: {error}"), reply_to=message)


class Simulation:
    """One seed of a run: what it stands on, its plans, and the folder it writes to."""

    def __init__(self, config: Config, folder: RunFolder | None = None) -> None:
        self.methods = canonical_methods(config)
        # The budgets are in bytes by now: a run that is repeated does not depend on the file of devices.
        self.key = config.model_dump_json(exclude={"out", "devices", "method"})
        self.experiment: Experiment = shared(self.key)
        settings = {"out": None, "method": tuple(self.methods)}
        self.config = self.experiment.config.model_copy(update=settings)
        self.folder = folder or RunFolder(Path())
        started = folder is not None and folder.records.exists()
        self.plans: dict[str, Plans] = (
            self._plans_on_disk() if started else {method: make_plans(self.experiment, method) for method in self.methods}
        )

    def _plans_on_disk(self) -> dict[str, Plans]:
        """Return the plans that a run began with and made again since; raises ConfigError where one is missing."""
        plans = plans_from_json(self.folder.read_plans())
        for method in self.methods:
            for key in map(plan_key, self.config.client_budgets()):
                if key not in plans.get(method, {}):
                    raise ConfigError(f"{self.folder.plans} lacks the plan {key!r} of {method}")
        return plans

    def open_folder(self) -> None:
        """Write what stands before the first round."""
        self.folder.path.mkdir(parents=True, exist_ok=True)
        write_whole(self.folder.config, self.config.to_toml())
        write_whole(self.folder.plans, plans_json(self.plans))
        self.folder.append([self._header()])

    def run(self, on_round: OnRound, done: dict[str, int] | None = None) -> None:
        """Run every method's rounds that are not done."""
        app = ServerApp()

        @app.main()
        def main(grid: Grid, context: Context) -> None:
            for method in self.methods:
                book = PlanBook(method, self.experiment, self.folder, self.plans)
                job = MethodRun(method, self.config, self.experiment, self.key, book, self.folder, on_round)
                run_method(grid, job, (done or {}).get(method))

        app(LocalGrid(client.app, self.config.clients), Context(RUN_ID, SERVER_NODE, {}, RecordDict(), {}))

    def _header(self) -> Row:
        budgets = self.config.client_budgets()
        return {
            "kind": "run",
            "schema": SCHEMA,
            "config": self.config.model_dump(mode="json"),
            "versions": {"python": sys.version.split()[0], **{name: version(name) for name in PACKAGES}},
            "budgets": {str(size): budgets.count(size) for size in dict.fromkeys(budgets)},
            "command": " ".join(["python -m fedact.simulate", *sys.argv[1:]]),
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
