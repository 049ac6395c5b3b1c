"""One worker: a process that calls what it is sent, one function at a time, and does not outlive its parent."""

import multiprocessing
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from threading import Lock, RLock, Thread
from types import ModuleType
from typing import Any

from fedact.processes.transfer import pack, unpack
from fedact.processes.tray import Packed, Tray, TrayReader

SPAWN = multiprocessing.get_context("spawn")
_STARTING = Lock()
"""Held while this process looks as a child of its is to see it."""


class WorkerDied(RuntimeError):
    """A worker ended before it answered: killed, out of memory, or by an exit in the function that it called."""


@dataclass(frozen=True)
class Outcome:
    """What a call came to: its value, or the exception that it raised or the WorkerDied that stands for it."""

    value: Any = None
    error: Exception | None = None

    def result(self) -> Any:
        """Return the value; raise the error, if there is one."""
        if self.error is not None:
            raise self.error
        return self.value


def call(function: Callable[[Any], Any], argument: Any) -> Outcome:
    """Call a function, in this process.

    >>> call(abs, -1), call(abs, "x").error
    (Outcome(value=1, error=None), TypeError("bad operand type for abs(): 'str'"))
    """
    try:
        return Outcome(function(argument))
    except Exception as error:
        return Outcome(error=error)


class Worker:
    """A process that is started at once and answers once it is up.

    threads: of its computation. preload: names of modules that it imports while nothing is asked of it yet. prepared: what
    its owner let it call before all else, and with which argument. folder: for what is large of its answers, None where
    there is none.
    """

    def __init__(self, threads: int, preload: Sequence[str], folder: Path | None = None) -> None:
        self.connection, theirs = SPAWN.Pipe()
        self.tray = TrayReader()
        self.prepared: dict[Callable[[Any], Any], Any] = {}
        arguments = (theirs, threads, tuple(preload), folder)
        self.process = SPAWN.Process(target=_work, args=arguments, name="fedact worker", daemon=True)
        with _hidden_main(), _interrupts_blocked():
            self.process.start()
        # The child's end is its own now: it closes when the child ends.
        theirs.close()

    def call(self, function: Callable[[Any], Any], argument: Any) -> Outcome:
        """Call a function there, and wait for what it comes to; both must be such that they can be pickled."""
        try:
            self.connection.send_bytes(pack((function, argument)))
            # Under Windows the pipe of a child that dies early stays open.
            if self.connection in wait([self.connection, self.process.sentinel]):
                return self._outcome(self.connection.recv_bytes())
        except (EOFError, OSError):
            pass
        self.process.join()
        return Outcome(error=WorkerDied(f"the worker died: {end_text(self.process.exitcode)}"))

    def _outcome(self, answer: bytes) -> Outcome:
        try:
            outcome: Outcome = self.tray.unpack(unpack(answer))
        except Exception as error:
            # Whoever waits for it must not wait for ever.
            return Outcome(error=error)
        return outcome

    @property
    def alive(self) -> bool:
        """Whether the process is there."""
        return self.process.is_alive()

    def kill(self) -> None:
        """End the process, whatever it is at; who waits for its answer gets none."""
        # Whoever waits for its answer may have closed it by now.
        with suppress(ValueError):
            self.process.kill()

    def close(self) -> None:
        """End the process, if it is there yet, and give back what it took here."""
        if not self.connection.closed:
            self.connection.close()
            self.process.kill()
            self.process.join()
            self.process.close()
            self.tray.close()


def end_text(code: int | None) -> str:
    """Return how a process ended, by its exit code: negative ones are signals.

    >>> end_text(-9)
    'killed by SIGKILL, as by a system that is out of memory'
    >>> end_text(3)
    'exit code 3'
    """
    if code is None or code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    return f"killed by {name}" + (", as by a system that is out of memory" if name == "SIGKILL" else "")


@contextmanager
def _hidden_main() -> Iterator[None]:
    """Within this context a child finds no script to run again: a notebook's, or one without a guard."""
    with _STARTING:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Within this context a child is born deaf to Ctrl-C, where the system can do so: a terminal sends it to all."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    # Its own start would end the block.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(connection: Connection, threads: int, preload: Sequence[str], folder: Path | None) -> None:
    """Be a worker: answer calls until the parent closes the connection, or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with_parent, daemon=True).start()
    # What these warn of, the process that they work for comes upon too.
    warnings.filterwarnings("ignore", category=UserWarning, module=r"fedact\.")
    for name in preload:
        import_module(name)
    import torch

    torch.set_num_threads(threads)
    if progress := sys.modules.get("tqdm"):
        # Its lock between processes, which torch.fx has it make, would be left behind by a worker that is killed.
        progress.tqdm.set_lock(RLock())
    tray = Tray(folder)
    while True:
        try:
            content = connection.recv_bytes()
        except (EOFError, OSError):
            return
        connection.send_bytes(pack(_answer(content, tray)))


def _end_with_parent() -> None:
    """End this process when its parent ends, also where that was killed and closes nothing itself."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _answer(content: bytes, tray: Tray) -> Packed:
    """Return the outcome of a call, both as bytes; what no bytes can hold is an error too."""
    outcome = call(_called, content)
    try:
        if outcome.error is None:
            return tray.pack(outcome)
        outcome.error.add_note("".join(traceback.format_exception(outcome.error)))
        answer = pack(outcome)
        # An exception whose class asks for more than one argument becomes bytes, and nothing becomes it again.
        unpack(answer)
    except Exception as error:
        reason = outcome.error or error
        return Packed(pack(Outcome(error=RuntimeError(f"{type(reason).__name__}: {reason}"))))
    return Packed(answer)


def _called(content: bytes) -> Any:
    function, argument = unpack(content)
    return function(argument)
