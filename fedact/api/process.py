"""The caller's process: what a run sets there is set back, and its lines are written where a notebook shows them."""

import io
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

import torch

from fedact.training.workspace import close_workspaces

LOGGER = "fedact"


@contextmanager
def as_before() -> Iterator[None]:
    """Within this context a run may set threads and open a workspace; afterwards they are as before, and gone."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        close_workspaces()


@contextmanager
def log_lines() -> Iterator[None]:
    """Within this context log lines of fedact are written to stderr."""
    logger, handler = logging.getLogger(LOGGER), logging.StreamHandler(sys.stderr)
    level = logger.level
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)


@contextmanager
def silence() -> Iterator[None]:
    """Within this context nothing is printed."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        yield
