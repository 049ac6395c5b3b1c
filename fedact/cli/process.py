"""A command as a whole process: an output that may end early, be full or be closed, and letters that it cannot show."""

import logging
import os
import sys
from collections.abc import Callable
from io import BufferedWriter, FileIO, TextIOWrapper
from typing import Any, TextIO

FAILED, BAD_INPUT = 1, 2
STANDARD = (0, 1, 2)
"""Descriptors of input, output and errors."""

log = logging.getLogger(__name__)


class Output(FileIO):
    """A standard output whose reader may end, as ``head`` does: what follows is dropped, and the command goes on."""

    def write(self, content: Any) -> int:
        """Write bytes, and return how many were taken."""
        try:
            return super().write(content)
        except BrokenPipeError:
            discard(self.fileno())
            if self.fileno() == 1:
                log.info("nobody reads the output any more: going on without it")
            return len(content)


def discard(descriptor: int) -> None:
    """Let what is written to a descriptor go nowhere from now on."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


def run_process(main: Callable[[], int]) -> int:
    """Run a command with the process's own output, and return the exit code: 1 where the output could not be written."""
    _open_closed()
    sys.stdout, sys.stderr = _lasting(sys.stdout, 1), _lasting(sys.stderr, 2)
    try:
        os.getcwd()
    except OSError:
        print("fedact: the folder that the command was started in is gone: change to another", file=sys.stderr)
        return BAD_INPUT
    try:
        code = main()
    except SystemExit as end:  # of argparse, which has printed its help
        code = int(end.code or 0)
    if (reason := _unwritten(sys.stdout, 1)) and not code:
        print(f"fedact: the output cannot be written: {reason}", file=sys.stderr)
        code = FAILED
    _unwritten(sys.stderr, 2)
    return code


def _unwritten(stream: TextIO, descriptor: int) -> str | None:
    """Write what is left in a stream; returns why that was not possible, after which Python does not try again."""
    try:
        stream.flush()
    except OSError as error:
        discard(descriptor)
        return error.strerror or "unknown reason"
    return None


def _open_closed() -> None:
    """Open what was closed before the process began, lest a file of its own gets the number of its output."""
    for descriptor in STANDARD:
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest number that is free is this one.
            os.open(os.devnull, os.O_RDWR)


def _lasting(stream: TextIO | None, descriptor: int) -> TextIO:
    """Return a stream on the same descriptor that outlasts its reader and shows unknown letters as escapes."""
    if stream is None:
        return open(os.devnull, "w", encoding="utf-8")
    if not isinstance(stream, TextIOWrapper):
        return stream
    raw = stream.buffer.raw if isinstance(stream.buffer, BufferedWriter) else stream.buffer
    if type(raw) is not FileIO:
        # The console of Windows has a way of its own.
        stream.reconfigure(errors="backslashreplace")
        return stream
    stream.flush()
    buffer = BufferedWriter(Output(descriptor, "wb", closefd=False))
    return TextIOWrapper(
        buffer, stream.encoding, "backslashreplace", line_buffering=stream.line_buffering, write_through=stream.write_through
    )
