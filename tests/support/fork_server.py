"""Command lines in forked children of one process that has imported everything, each killed when it is due.

Reads a JSON object a line, {"arguments", "log", "kill_after"}, and answers with the exit code (negative for a signal) and
the seconds it took. Every plan that is looked at is made again, so that runs with --replan write plans as they go.
"""

import json
import os
import signal
import sys
import time

import matplotlib.backends.backend_agg  # noqa: F401
import pandas  # noqa: F401
import torchvision.models  # noqa: F401

from fedact.federation import planning
from fedact.simulate import main


def child(arguments: list[str], log: str) -> None:
    os.setsid()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    code = 70
    try:
        code = main(arguments)
        sys.stdout.flush()
    finally:
        os._exit(code)


def wait(process: int, deadline: float | None) -> int:
    while deadline is None or time.monotonic() < deadline:
        done, status = os.waitpid(process, 0 if deadline is None else os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    os.killpg(process, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def serve() -> None:
    planning.TOLERANCE = 0
    for line in sys.stdin:
        order = json.loads(line)
        started, after = time.monotonic(), order["kill_after"]
        process = os.fork()
        if not process:
            child(order["arguments"], order["log"])
        try:
            code = wait(process, None if after is None else started + after)
        except ProcessLookupError:
            # It was to be killed before it had its own group.
            os.kill(process, signal.SIGKILL)
            code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        print(json.dumps({"code": code, "seconds": time.monotonic() - started}), flush=True)


if __name__ == "__main__":
    serve()
