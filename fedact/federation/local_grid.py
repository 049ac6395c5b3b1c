"""The messages of a run in this process; what it touches of Flower that is private, tests name."""

import logging
import traceback
from collections.abc import Iterable, Iterator
from typing import Self

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

RUN_ID = 1
SERVER_NODE = 1
CLIENT_RAISED = 2
"""Flower's code for an exception in a ClientApp."""
NODE_UNAVAILABLE = 5
"""Flower's code for a node that is not there."""


def identify() -> None:
    """Let messages be made in this process: they take run and sender from here, where Flower's own runtimes put them too."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, RUN_ID, SERVER_NODE
    logging.getLogger("flwr").setLevel(logging.WARNING)


def answer(app: ClientApp, message: Message, context: Context) -> Message:
    """Return the ClientApp's reply; an exception becomes an error that says what was raised."""
    try:
        return app(message, context)
    except Exception as error:
        logging.getLogger(__name__).debug(traceback.format_exc())
        return failure(message, f"{type(error).__name__}: {error}")


def failure(message: Message, reason: str, code: int = CLIENT_RAISED) -> Message:
    """Return the error reply to a message."""
    return Message(Error(code, reason), reply_to=message)


class LocalGrid(Grid):
    """Calls a ClientApp in this process, one message after another: deterministic, and no process to start."""

    def __init__(self, app: ClientApp, clients: int) -> None:
        identify()
        self.app = app
        self.node_ids = range(SERVER_NODE + 1, SERVER_NODE + 1 + clients)
        self.replies: dict[str, Message] = {}
        self.pushed = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def set_run(self, run: Run) -> None:
        raise NotImplementedError("the run is set when the grid is made")

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
            self.replies[names[-1]] = self.reply(message)
        return names

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self.replies.pop(name) for name in message_ids if name in self.replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Yield each reply as soon as it is there, so that no two need be kept at once."""
        yield from map(self.reply, messages)

    def reply(self, message: Message) -> Message:
        """Return one message's reply."""
        return answer(self.app, message, self.context_of(message))

    def context_of(self, message: Message) -> Context:
        """Return what the client that a message is for knows of itself."""
        node = message.metadata.dst_node_id
        return Context(RUN_ID, node, {"partition-id": node - SERVER_NODE - 1}, RecordDict(), {})
