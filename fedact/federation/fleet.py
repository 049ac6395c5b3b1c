"""The server's view of real nodes: who holds which partition with which budget, and the grid that reaches them."""

import json
import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from math import inf
from typing import Self

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from fedact.config.budgets import Budget, parse_budget, size_text
from fedact.config.errors import ConfigError
from fedact.config.schema import Config
from fedact.federation.local_grid import CLIENT_RAISED, NODE_UNAVAILABLE, failure
from fedact.training.experiment import Experiment

QUERY_SECONDS = 120.0
"""How long a node may take to describe itself: the first message installs the app and starts a process."""
PAUSE_SECONDS = 0.25

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Member:
    """A node that holds a partition.

    node: its number in Flower. budget: of one size, None where it says none. weights: digests of the initial weights that it
    has on disk. unreachable: whether its last reply never came; another node may then take its place.
    """

    node: int
    partition: int
    budget: Budget | None
    weights: frozenset[str]
    unreachable: bool = False


def exchange(grid: Grid, messages: Iterable[Message], seconds: float) -> dict[int, Message]:
    """Send the messages and return each node's reply; one that never came is an error that says so."""
    sent: dict[str, Message] = {}
    replies: dict[int, Message] = {}
    for message in messages:
        # One by one: Flower refuses a push that is too large as a whole.
        names = [name for name in grid.push_messages([message]) if name]
        if names:
            sent[names[0]] = message
        else:
            replies[message.metadata.dst_node_id] = failure(message, "the message could not be sent: it may be too large")
    end = time.monotonic() + seconds
    while sent and time.monotonic() < end:
        for reply in grid.pull_messages(list(sent)):
            asked = sent.pop(reply.metadata.reply_to_message_id, None)
            if asked is not None:
                replies[asked.metadata.dst_node_id] = reply
        if sent:
            time.sleep(PAUSE_SECONDS)
    late = f"no reply within {seconds:g} seconds"
    return {**replies, **{m.metadata.dst_node_id: failure(m, late, NODE_UNAVAILABLE) for m in sent.values()}}


@dataclass(eq=False)
class Fleet:
    """The nodes as the server knows them.

    members: by partition. spares: a second node of a partition, which takes over when the first is unreachable. queried:
    the numbers of all nodes that were queried, refused ones too. planned_budgets: each client's budget in bytes, None before
    there are plans; a node that comes later must have the same.
    """

    grid: Grid
    clients: int
    members: dict[int, Member] = field(default_factory=dict)
    spares: dict[int, Member] = field(default_factory=dict)
    queried: set[int] = field(default_factory=set)
    planned_budgets: tuple[int | None, ...] | None = None

    def wait(self, seconds: float) -> None:
        """Wait until every partition has its node, for so long at most; raises ConfigError where none came."""
        end = time.monotonic() + seconds
        while self.query_new_nodes() < self.clients and time.monotonic() < end:
            time.sleep(PAUSE_SECONDS)
        if not self.members:
            raise ConfigError(
                f"no node with a partition came within {seconds:g} seconds: see flower-supernode --node-config"
            )
        if missing := [str(client) for client in range(self.clients) if client not in self.members]:
            log.warning("no node holds partition %s: their rows will say so", ", ".join(missing))

    def query_new_nodes(self) -> int:
        """Ask new nodes for their partition and budget, and return how many partitions have a node."""
        new = [node for node in sorted(self.grid.get_node_ids()) if node not in self.queried]
        self.queried.update(new)
        questions = [Message(RecordDict(), node, "query") for node in new]
        for node, reply in sorted(exchange(self.grid, questions, QUERY_SECONDS).items()):
            try:
                self._admit(node, reply)
            except ConfigError as error:
                log.warning("a node is left out: %s", error)
        return len(self.members)

    def _admit(self, node: int, reply: Message) -> None:
        if reply.has_error():
            raise ConfigError(str(reply.error.reason))
        member, partitions = read_member(node, reply)
        if partitions != self.clients:
            raise ConfigError(f"it says num-partitions={partitions}, the run has clients={self.clients}")
        if not 0 <= member.partition < self.clients:
            raise ConfigError(f"it says partition-id={member.partition}, of {self.clients}")
        if self.planned_budgets and member.budget and member.budget.sizes[0] != self.planned_budgets[member.partition]:
            planned = self.planned_budgets[member.partition]
            raise ConfigError(f"partition {member.partition} was planned for {planned} bytes, the node has {member.budget}")
        before = self.members.get(member.partition)
        if before is not None and not before.unreachable and before.node in set(self.grid.get_node_ids()):
            self.spares[member.partition] = member
            raise ConfigError(f"two nodes say partition-id={member.partition}; it is used when the other is lost")
        self.members[member.partition] = member

    def config(self, config: Config) -> Config:
        """Return the config with the nodes' budgets in place of its own; a node that says none has the config's."""
        sizes = list(config.client_budgets())
        for member in self.members.values():
            if member.budget:
                sizes[member.partition] = member.budget.sizes[0]
        self.planned_budgets = tuple(sizes)
        if self.planned_budgets == config.client_budgets():
            return config
        return config.model_copy(update={"budget": parse_budget("/".join(map(size_text, sizes)))})

    def open(self, experiment: Experiment) -> "FleetGrid":
        """Return the grid that reaches the nodes for an experiment."""
        return FleetGrid(self, experiment)


def read_member(node: int, reply: Message) -> tuple[Member, int]:
    """Return a node's description of itself and its number of partitions; raises ConfigError for a malformed one."""
    try:
        said = reply.content["node"]
        partition, partitions = int(said["partition"]), int(said["partitions"])  # type: ignore[arg-type]
        budget = parse_budget(str(said["budget"])) if said["budget"] else None
        starts = frozenset(map(str, said["starts"]))  # type: ignore[arg-type]
        if budget and len(budget.sizes) != 1:
            raise ConfigError(f"a node has one budget, not '{budget}'")
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"it answers as no node of this app does ({error})") from None
    return Member(node, partition, budget, starts), partitions


class FleetGrid(Grid):
    """Client numbers on this side, Flower's node numbers on the other; a client without a node is an error at once."""

    def __init__(self, fleet: Fleet, experiment: Experiment) -> None:
        self.fleet = fleet
        self.start = experiment.start
        self.weights_name = experiment.start_digest
        self.common: dict[str, str] = {
            "experiment": experiment.config.model_dump_json(
                exclude={
                    "out",
                    "devices",
                    "method",
                    "baseline",
                    "data_dir",
                    "ray_address",
                    "tensorboard",
                    "pretrain_from",
                    "workers",
                }
            ),
            "start": self.weights_name,
            "preprocessing": json.dumps(asdict(experiment.preprocessing)),
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def set_run(self, run: Run) -> None:
        self.fleet.grid.set_run(run)

    @property
    def run(self) -> Run:
        return self.fleet.grid.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Return a number for every client, with a node or without."""
        return range(1, self.fleet.clients + 1)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        raise NotImplementedError("a fleet's messages are sent and received in one call")

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        raise NotImplementedError("a fleet's messages are sent and received in one call")

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Yield a reply to every message, in their order, so that what is made of them is the same in every run."""
        self.fleet.query_new_nodes()
        online, asked = set(self.fleet.grid.get_node_ids()), list(messages)
        members = [self.fleet.members.get(message.metadata.dst_node_id - 1) for message in asked]
        sent = {
            member.node: self._outward(message, member)
            for message, member in zip(asked, members, strict=True)
            if member is not None and member.node in online
        }
        replies = exchange(self.fleet.grid, sent.values(), inf if timeout is None else timeout)
        for message, member in zip(asked, members, strict=True):
            reply = replies.pop(member.node, None) if member else None
            yield self._inward(message, member, reply)

    def _outward(self, message: Message, member: Member) -> Message:
        """Return the order for a node, with the run's config, and the initial weights where the node lacks them."""
        order = ConfigRecord({**message.content["config"], **self.common})  # type: ignore[dict-item]
        needed = {} if self.weights_name in member.weights else self.start
        parts = {**message.content, "config": order, "start": ArrayRecord(needed)}
        return Message(RecordDict(parts), member.node, message.metadata.message_type)

    def _inward(self, message: Message, member: Member | None, reply: Message | None) -> Message:
        """Return a node's reply as its client's."""
        if member is None or reply is None:
            why = "no node holds this partition" if member is None else "the node of this partition is gone"
            return failure(message, why, NODE_UNAVAILABLE)
        if not reply.has_error():
            self.fleet.members[member.partition] = replace(
                member, weights=member.weights | {self.weights_name}, unreachable=False
            )
            return Message(reply.content, reply_to=message)
        # After an error a node may have to start anew: it gets the initial weights once more.
        lost = reply.error.code != CLIENT_RAISED
        after = self.fleet.spares.pop(member.partition, None) if lost else None
        self.fleet.members[member.partition] = after or replace(member, weights=frozenset(), unreachable=lost)
        return failure(message, reply.error.reason or "no reason", reply.error.code)
