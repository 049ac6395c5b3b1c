"""Bytes that travel between the server and a client: what a device must receive and send, the same in every runtime.

Counted as Flower serializes it: tensors with their names and headers, numbers in 8 bytes, texts with their names. Not
counted is what a simulation says beside that (the run's config, where the data lies, seeds), and Flower's own envelope.
"""

from collections.abc import Iterable, Mapping

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from torch import Tensor

from fedact.config.baselines import CENTRAL, LOCAL
from fedact.federation.local_grid import NODE_UNAVAILABLE
from fedact.storage.rows import Row

ORDER = ("round", "client", "plan", "privacy")
"""What of an order's config a device needs."""
NUMBER_BYTES = 8


class Traffic:
    """One method's messages, by client; the initial model goes to a client once, with its first order.

    holders: clients that have the initial model. orders: the bytes of this round's orders, by client.
    """

    def __init__(self, start: Mapping[str, Tensor]) -> None:
        self.model_bytes = ArrayRecord(dict(start)).count_bytes()
        self.holders: set[int] = set()
        self.orders: dict[int, int] = {}

    def resume(self, rows: Iterable[Row]) -> None:
        """Note from the method's rows so far who has the initial model."""
        self.holders |= {row["client"] for row in rows if row.get("download_bytes") is not None}

    def note_order(self, client: int, content: RecordDict, pool: Mapping[int, int] = {}) -> None:
        """Note an order that is sent to a client; pool: by client whose examples are to be there, their bytes."""
        self.orders[client] = order_bytes(content) + (0 if client in self.holders else self.model_bytes)

    def row(self, client: int, reply: Message | None) -> Row:
        """Return a row's ``upload_bytes`` and ``download_bytes`` once the client replied or failed to (None).

        Both are None where the order found no node.
        """
        if reply is not None and reply.has_error() and reply.error.code == NODE_UNAVAILABLE:
            return {"upload_bytes": None, "download_bytes": None}
        self.holders.add(client)
        upload = None if reply is None or reply.has_error() else reply_bytes(reply.content)
        return {"upload_bytes": upload, "download_bytes": self.orders[client]}


class TrafficAlone(Traffic):
    """Of clients that train alone: each receives the initial model and its plan once, and nobody sends anything."""

    def note_order(self, client: int, content: RecordDict, pool: Mapping[int, int] = {}) -> None:
        self.orders[client] = 0 if client in self.holders else self.model_bytes + _plan_bytes(content)

    def row(self, client: int, reply: Message | None) -> Row:
        return super().row(client, reply) | {"upload_bytes": 0}


class TrafficToOnePlace(Traffic):
    """Of examples that lie in one place: no model travels, but each client's examples do, once. holders: whose are there."""

    def resume(self, rows: Iterable[Row]) -> None:
        """Rows do not say whose examples were there: the server knows."""

    def note_order(self, client: int, content: RecordDict, pool: Mapping[int, int] = {}) -> None:
        self.orders[client] = sum(size for each, size in pool.items() if each not in self.holders)
        self.holders.update(pool)

    def row(self, client: int, reply: Message | None) -> Row:
        return {"upload_bytes": self.orders[client], "download_bytes": 0}


TRAFFIC: dict[str | None, type[Traffic]] = {None: Traffic, LOCAL: TrafficAlone, CENTRAL: TrafficToOnePlace}
"""By baseline, what travels."""


def order_bytes(content: RecordDict) -> int:
    """Return the bytes of an order: the global tensors that some plan trains, methods' states, the plan."""
    return _tensor_bytes(content) + _plan_bytes(content)


def _plan_bytes(content: RecordDict) -> int:
    order = content["config"]
    assert isinstance(order, ConfigRecord)
    return sum(len(name) + _value_bytes(order[name]) for name in ORDER)


def reply_bytes(content: RecordDict) -> int:
    """Return the bytes of a reply as it arrived, so after privacy: the trained tensors and the figures."""
    figures = [record.count_bytes() for record in content.values() if isinstance(record, MetricRecord)]
    return _tensor_bytes(content) + sum(figures)


def _tensor_bytes(content: RecordDict) -> int:
    return sum(record.count_bytes() for record in content.values() if isinstance(record, ArrayRecord))


def _value_bytes(value: object) -> int:
    return len(value.encode()) if isinstance(value, str) else NUMBER_BYTES
