"""Some workers: functions are called in them at the same time, and what they return comes back in order."""

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread
from typing import Any, Self

from fedact.processes.logs import log_again, with_records
from fedact.processes.shared import Shared, SharedFolder
from fedact.processes.worker import Outcome, Worker, WorkerDied, call

AHEAD = 4
"""Calls a worker that are begun, or done and not yet asked for, before the first of them is asked for."""
PAUSE_SECONDS = 0.5
"""Windows lets nobody interrupt a wait without an end."""

Function = Callable[[Any], Any]


class Workers:
    """Processes that call functions; a context manager, at whose end they end, whatever they are at.

    They are started at once, import what they need while this process goes on, and wait for calls. With a count of 1, and
    within a worker, there are none: functions are called in this process.

    count: of processes. threads: of each one's computation. preload: names of modules that each imports at its start.

    >>> with Workers(1) as workers:
    ...     [outcome.value for outcome in workers.map(abs, [-1, -2])]
    [1, 2]
    """

    def __init__(self, count: int, threads: int = 1, preload: Sequence[str] = ()) -> None:
        self.count = 1 if multiprocessing.parent_process() is not None else count
        self._threads, self._preload = threads, tuple(preload)
        self._first: dict[Function, Any] = {}
        self._files = SharedFolder()
        self._calls: SimpleQueue[tuple[Function, Any, Future[Outcome]] | None] = SimpleQueue()
        self._open = True
        self._workers = [self._new() for _ in range(self.count if self.count > 1 else 0)]
        # A thread a worker sends, waits and reads, so that it gets its next call while this process is at something else.
        self._senders = [Thread(target=self._serve, args=[at], daemon=True) for at in range(len(self._workers))]
        for sender in self._senders:
            sender.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End the processes."""
        self._open = False
        for worker in self._workers:
            worker.kill()
            self._calls.put(None)
        for sender in self._senders:
            sender.join()
        for worker in self._workers:
            worker.close()
        self._files.__exit__()

    def share(self, value: Any) -> Shared:
        """Return a value that can be sent to all workers, whose arrays they map into memory; until the end of the block.

        Raises OSError where the cache's disk has no room. Without processes it is the value itself.
        """
        return self._files.share(value) if self._workers else Shared(value)

    def remove(self, shared: Shared) -> None:
        """Remove a shared value that nobody will open or read any more, before the end of the block."""
        self._files.remove(shared)

    def first(self, function: Function, argument: Any) -> None:
        """Let each worker call this before its next call, also one that takes a dead one's place.

        It takes the place of an earlier argument of the same function. An exception in it is the outcome of that next call.
        Without processes nothing is called.
        """
        self._first[function] = argument

    def map(self, function: Function, arguments: Iterable[Any]) -> Iterator[Outcome]:
        """Yield the outcome of the function for each argument, in the arguments' order.

        A worker has one call at a time; arguments are taken, and outcomes kept, only a few ahead of the one that is asked
        for. A worker that dies is the outcome of the call that it was at, a WorkerDied, and is replaced.

        function: one that a module has by its name. arguments: such that they can be pickled, as what is returned.
        """
        if not self._workers:
            yield from (call(function, argument) for argument in arguments)
            return
        begun: deque[Future[Outcome]] = deque()
        try:
            for argument in arguments:
                begun.append(Future())
                self._calls.put((function, argument, begun[-1]))
                if len(begun) >= AHEAD * self.count:
                    yield _awaited(begun.popleft())
            while begun:
                yield _awaited(begun.popleft())
        finally:
            for future in begun:
                future.cancel()

    def results(self, function: Function, arguments: Iterable[Any]) -> Iterator[Any]:
        """Yield what the function returns for each argument, in the arguments' order; raises the first exception of a call.

        What it logs is logged here, then. What a worker died at is called once more, in this process: it may have been
        killed for something else.
        """
        if not self._workers:
            yield from map(function, arguments)
            return
        asked: deque[Any] = deque()

        def noted() -> Iterator[tuple[Function, Any]]:
            for argument in arguments:
                asked.append(argument)
                yield function, argument

        for outcome in self.map(with_records, noted()):
            argument = asked.popleft()
            if isinstance(outcome.error, WorkerDied):
                yield function(argument)
            else:
                value, records = outcome.result()
                log_again(records)
                yield value

    def _serve(self, at: int) -> None:
        """Let one worker answer calls until the end, and replace it where it dies."""
        while (asked := self._calls.get()) is not None:
            function, argument, future = asked
            if self._open and future.set_running_or_notify_cancel():
                future.set_result(self._call(self._workers[at], function, argument))
                if self._open and not self._workers[at].alive:
                    self._workers[at].close()
                    self._workers[at] = self._new()

    def _call(self, worker: Worker, function: Function, argument: Any) -> Outcome:
        for before, given in list(self._first.items()):
            if worker.prepared.get(before) is not given:
                outcome = worker.call(before, given)
                if outcome.error is not None:
                    return outcome
                worker.prepared[before] = given
        return worker.call(function, argument)

    def _new(self) -> Worker:
        try:
            folder = self._files.folder()
        except OSError:
            folder = None
        return Worker(self._threads, self._preload, folder)


def _awaited(future: "Future[Outcome]") -> Outcome:
    """Return a future's outcome; Ctrl-C ends the wait."""
    while True:
        try:
            return future.result(PAUSE_SECONDS)
        except TimeoutError:
            continue
