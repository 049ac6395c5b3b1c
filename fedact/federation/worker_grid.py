"""The messages of a run in worker processes of this machine, or in this process where there is one worker."""

import copy
import logging
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from flwr.app import ArrayRecord, Context, Message, RecordDict

from fedact.config.errors import ConfigError
from fedact.config.schema import Config
from fedact.federation import client
from fedact.federation.arrays import Plain, plain, record_from
from fedact.federation.local_grid import SERVER_NODE, LocalGrid, answer, failure, identify
from fedact.federation.shared_records import Sent, SharedRecords, received
from fedact.processes.handover import packed, receive
from fedact.processes.pool import AHEAD, Workers
from fedact.processes.worker import Outcome
from fedact.storage.system import processors

COUNT = "FEDACT_WORKERS"
"""The environment variable that stands for the cores."""
PRELOAD = ("fedact.federation.worker_grid",)
SMALL_DATASETS = ("digits", "synthetic", "motion")
SMALL_EXAMPLES, MANY_EXAMPLES = 2_000, 50_000
"""Training examples of data sets, where nobody says how many: before anything is read, more need not be known."""
SIDE, LARGE_SIDE = 64, 224
"""Pixels of an image's side, where nobody says: of data sets as they come, and with given weights."""
FEWEST_IMAGES = 20_000
"""Images of 64 pixels a side that must be trained on in a run, epochs and rounds counted: less is done before processes,
each of which imports for some seconds, have paid for themselves."""


def start_workers(config: Config) -> Workers:
    """Return the started workers of a config; see ``worker_count``.

    Raises ConfigError where the config's code is in no file and cannot be sent to them.
    """
    count = worker_count(config)
    handed = packed(config.code or ()) if count > 1 else ()
    workers = Workers(count, config.threads or 1, PRELOAD)
    if handed:
        workers.first(receive, handed)
    return workers


def worker_count(config: Config) -> int:
    """Return the number of worker processes of a run; 1 is this process alone.

    ``auto``: one for each core that this process may use, or as many as $FEDACT_WORKERS says, divided by the threads of a
    client; no more than a round has clients; and 1 on a GPU, or where all rounds together train on few images. Raises
    ConfigError where $FEDACT_WORKERS is no number.
    """
    if config.runtime != "local":
        return 1
    if config.workers != "auto":
        return config.workers
    if config.device != "cpu" or images_trained(config) < FEWEST_IMAGES:
        return 1
    most = cores() // (config.threads or 1)
    # How many clients there are may only be known with the data.
    clients = round(config.sample_fraction * config.fleet_size) if config.fleet_size else most
    return max(1, min(most, max(1, clients)))


def images_trained(config: Config) -> float:
    """Return on about how many images of 64 pixels a side a run trains at the same time, each time counted.

    Clients do, and seeds that are pretrained: on half of the images, but all layers, which take about three times as long.
    """
    examples = config.max_examples or (SMALL_EXAMPLES if config.dataset in SMALL_DATASETS else MANY_EXAMPLES)
    side = config.resolution or (SIDE if config.weights in ("none", "pretrain") else LARGE_SIDE)
    series = len(config.method) * (1 + len(config.baseline))
    trainings = config.seeds * series * config.rounds * config.local_epochs * config.sample_fraction
    pretrained = config.seeds * config.pretrain_epochs if config.weights == "pretrain" and config.seeds > 1 else 0
    return examples * (trainings + 1.5 * pretrained) * (side / SIDE) ** 2


def cores() -> int:
    """Return for how many processes there are cores, or what $FEDACT_WORKERS says; raises ConfigError for no number."""
    given = os.environ.get(COUNT)
    if not given:
        return processors()
    if not given.isdigit() or int(given) < 1:
        raise ConfigError(f"${COUNT} is {given!r}: it is a number of processes, at least 1")
    return int(given)


@dataclass(frozen=True, eq=False)
class Parcel:
    """A message between this process and a worker, without its arrays, and these by the names of their records."""

    message: Message
    sent: dict[str, Sent] = field(default_factory=dict)
    plain: dict[str, Plain] = field(default_factory=dict)

    def opened(self) -> Message:
        """Return the message with its arrays; call it once."""
        for name, record in self.sent.items():
            self.message.content[name] = received(record)
        for name, arrays in self.plain.items():
            self.message.content[name] = record_from(arrays)
        return self.message


def without_arrays(message: Message) -> tuple[Message, dict[str, ArrayRecord]]:
    """Return a copy of a message without its arrays, and these by the names of their records; errors have none."""
    if not message.has_content():
        return message, {}
    arrays = {name: record for name, record in message.content.items() if isinstance(record, ArrayRecord)}
    rest = copy.copy(message)
    rest.content = RecordDict({name: record for name, record in message.content.items() if name not in arrays})
    return rest, arrays


def answer_in_worker(order: tuple[Parcel, Context]) -> Parcel:
    """Answer a message in this process, whose workspace is open."""
    identify()
    parcel, context = order
    reply, arrays = without_arrays(answer(client.app, parcel.opened(), context))
    return Parcel(reply, plain={name: plain(record) for name, record in arrays.items()})


class WorkerGrid(LocalGrid):
    """Sends each message to a worker that is free, and yields the replies.

    What a client does depends on its message alone: replies are the same whoever makes them, and however many do.

    records: those that all workers need, and the workers. examples: how many each client trains on.
    """

    def __init__(self, config: Config, records: SharedRecords, examples: Sequence[int]) -> None:
        super().__init__(client.app, config.fleet_size)
        self.records = records
        self.workers = records.workers
        self.examples = examples

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Yield the replies in the order of the messages, but the last few; a dead worker's is an error.

        Of these the clients with the most examples begin first, so that the workers end at about the same time.
        """
        if self.workers.count == 1:
            yield from super().send_and_receive(messages, timeout=timeout)
            return
        sent: deque[Message] = deque()
        used: dict[int, ArrayRecord] = {}

        def orders() -> Iterator[tuple[Parcel, Context]]:
            for message in self._largest_first(list(messages)):
                sent.append(message)
                rest, arrays = without_arrays(message)
                used.update((id(record), record) for record in arrays.values())
                parcel = Parcel(rest, {name: self.records.share(record) for name, record in arrays.items()})
                yield parcel, self.context_of(message)

        for outcome in self.workers.map(answer_in_worker, orders()):
            yield _reply(sent.popleft(), outcome)
        self.records.keep(used.values())

    def _largest_first(self, messages: list[Message]) -> list[Message]:
        """Return the messages with the last few, as many as are under way at once, by their clients' examples."""
        start = max(0, len(messages) - AHEAD * self.workers.count)
        few = sorted(messages[start:], key=lambda message: -self.examples[message.metadata.dst_node_id - SERVER_NODE - 1])
        return [*messages[:start], *few]


def _reply(message: Message, outcome: Outcome) -> Message:
    if outcome.error is None:
        parcel: Parcel = outcome.value
        return parcel.opened()
    logging.getLogger(__name__).debug("\n".join(getattr(outcome.error, "__notes__", [])))
    return failure(message, f"{type(outcome.error).__name__}: {outcome.error}")
