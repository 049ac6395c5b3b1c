"""Flower's records that all workers need: each lies in a file once, and each worker reads it once."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from flwr.app import ArrayRecord

from fedact.federation.arrays import plain, record_from
from fedact.processes.pool import Workers
from fedact.processes.shared import Shared

FEWEST_BYTES = 65_536
"""Less goes with the message."""
READ = 4
"""Records that a worker has at hand: the model's, and a method's states by plan."""

Sent = ArrayRecord | Shared
"""A record as it is sent to a worker."""


@dataclass(eq=False)
class SharedRecords:
    """The records that are in files, by identity: a round's weights are the same object in all its messages."""

    workers: Workers
    _files: dict[int, tuple[ArrayRecord, Shared]] = field(default_factory=dict, init=False)

    def share(self, record: ArrayRecord) -> Sent:
        """Return what to send for a record: itself where it is small, or where the disk has no room for it."""
        if self.workers.count == 1 or record.count_bytes() < FEWEST_BYTES:
            return record
        if id(record) not in self._files:
            try:
                self._files[id(record)] = record, self.workers.share(plain(record))
            except OSError:
                return record
        return self._files[id(record)][1]

    def keep(self, records: Iterable[ArrayRecord]) -> None:
        """Remove the files of all other records."""
        kept = set(map(id, records))
        for name in self._files.keys() - kept:
            self.workers.remove(self._files.pop(name)[1])


def received(sent: Sent) -> ArrayRecord:
    """Return the record that was sent, in a worker; nobody may change its arrays."""
    return sent if isinstance(sent, ArrayRecord) else _read(sent.file, sent.head, sent.places)


@lru_cache(maxsize=READ)
def _read(file: Path, head: bytes, places: tuple[tuple[int, int], ...]) -> ArrayRecord:
    return record_from(Shared(head=head, file=file, places=places).read())
