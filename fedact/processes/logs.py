"""What a call logged in a worker: it comes back with the call's value, and is logged here."""

import logging
from collections.abc import Callable, Iterable
from typing import Any

LOGGER = "fedact"


class _Kept(logging.Handler):
    """Keeps records, such that they can be pickled."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        record.msg, record.args, record.exc_info = record.getMessage(), None, None
        self.records.append(record)


def with_records(asked: tuple[Callable[[Any], Any], Any]) -> tuple[Any, list[logging.LogRecord]]:
    """Call a function with an argument, and return its value with what was logged meanwhile, from INFO on."""
    (function, argument), kept, logger = asked, _Kept(), logging.getLogger(LOGGER)
    before = logger.level
    logger.addHandler(kept)
    logger.setLevel(logging.INFO)
    try:
        return function(argument), kept.records
    finally:
        logger.setLevel(before)
        logger.removeHandler(kept)


def log_again(records: Iterable[logging.LogRecord]) -> None:
    """Log records as if what they tell had happened in this process."""
    for record in records:
        if (logger := logging.getLogger(record.name)).isEnabledFor(record.levelno):
            logger.handle(record)
