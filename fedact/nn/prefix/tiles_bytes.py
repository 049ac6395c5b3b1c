"""The most bytes alive while tasks run, from shapes and lifetimes alone."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from fedact.nn.prefix.tiles_operations import Streamed, Windowed
from fedact.nn.prefix.tiles_program import Task


class _Alive:
    """The storages behind the values that are alive, and their bytes."""

    def __init__(self, sizes: Mapping[int, int]) -> None:
        self.storages: dict[int, tuple[int, ...]] = {}
        self.sizes, self.readers = dict[int, int](), Counter[int]()
        self.freed, self.bytes, self.peak = set[int](), 0, 0
        for value, nbytes in sizes.items():
            self.add(value, nbytes)

    def note(self, more: int) -> None:
        """Note that so many bytes are alive beside the values."""
        self.peak = max(self.peak, self.bytes + more)

    def add(self, value: int, nbytes: int, others: Iterable[int] = ()) -> None:
        """Add a value with a storage of its own; others: the values whose storages it may be a view of."""
        self.sizes[value] = nbytes
        self.join(value, {value}.union(*(self.storages.get(other, ()) for other in others)))
        self.bytes += nbytes
        self.note(0)

    def join(self, value: int, storages: Iterable[int]) -> None:
        """Add a value on storages that are known."""
        self.storages[value] = tuple(storages)
        self.readers.update(self.storages[value])

    def free(self, values: Iterable[int]) -> None:
        """Free values, and the storages that no other value has."""
        for value in values:
            if value not in self.freed:
                self.freed.add(value)
                for storage in self.storages.get(value, ()):
                    self.readers[storage] -= 1
                    self.bytes -= 0 if self.readers[storage] else self.sizes[storage]


def peak_bytes(tasks: Sequence[Task], given: Mapping[int, int], element_bytes: int, examples: int) -> int:
    """Return the most bytes alive while tasks run.

    given: bytes of the values that are there before, without the images. element_bytes: of one element of all examples.
    """
    alive = _Alive(given)
    for task in tasks:
        operation, output = task.step.operation, task.step.output
        size = task.output * element_bytes
        if operation is None:
            _run_unknown(task, alive, examples)
        elif isinstance(operation, Windowed):
            copied, result = task.copied * element_bytes, task.result * element_bytes
            alive.note(copied)
            if copied:
                alive.free(task.frees)
            alive.note(copied + result + operation.scratch * examples * task.result)
            alive.free(task.frees)
            if task.cut is not None:
                alive.note(result + size)
            alive.add(output, size)
        elif isinstance(operation, Streamed):
            alive.note(operation.peak_bytes(examples, task.channels_last))
            alive.free(task.frees)
            alive.add(output, size)
        elif task.overwrites is not None:
            alive.join(output, alive.storages[task.step.inputs[task.overwrites]])
        else:
            alive.add(output, size)
        alive.free(task.frees)
    return alive.peak


def _run_unknown(task: Task, alive: _Alive, examples: int) -> None:
    memories = task.step.memories
    new = sum(memory.nbytes for memory in memories if memory.origin is None)
    alive.add(task.step.output, new * examples, [memory.origin for memory in memories if memory.origin is not None])
