"""Ctrl-C and SIGTERM end a command with one line, whatever it is doing. Imported before all else, it imports little."""

import os
import signal
from types import FrameType

SIGNALS = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
"""Those that stop a command, with what Python does by itself: what somebody has set otherwise, as nohup does, stays."""
SIGNAL_CODES = 128
"""By a shell's custom, the exit code of a signal is its number and this."""


class Stopped(KeyboardInterrupt):
    """A signal that stops a command; code: the exit code that says so."""

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__()
        self.code = SIGNAL_CODES + number


def stop_code(stop: KeyboardInterrupt) -> int:
    """Return the exit code of a command that was stopped."""
    return stop.code if isinstance(stop, Stopped) else Stopped().code


def catch_early() -> None:
    """End the process at once, with one line, when it is stopped before ``catch_late``.

    An exception would be lost in some imports, and a long traceback in others.
    """
    for number, default in SIGNALS.items():
        if signal.getsignal(number) is default:
            signal.signal(number, _end)


def catch_late() -> None:
    """From now on raise Stopped, so that files and processes are put in order; a second signal ends the process at once."""
    for number in SIGNALS:
        if signal.getsignal(number) is _end:
            signal.signal(number, _stop)


def _end(number: int, _: FrameType | None) -> None:
    os.write(2, b"\nfedact: interrupted; nothing was written\n")
    os._exit(SIGNAL_CODES + number)


def _stop(number: int, _: FrameType | None) -> None:
    for each in SIGNALS:
        signal.signal(each, _end_late)
    raise Stopped(number)


def _end_late(number: int, _: FrameType | None) -> None:
    os.write(2, b"\nfedact: interrupted twice; what a round had not finished is dropped when the run goes on\n")
    os._exit(SIGNAL_CODES + number)
