"""Warnings of fedact as one line each, however many places come upon the same."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedact.reports.safe_text import escaped

PACKAGE = str(Path(__file__).parent.parent)

log = logging.getLogger(__name__)


@contextmanager
def warnings_once() -> Iterator[None]:
    """Within this context a warning of fedact is logged once, as one line; others are shown as before."""
    said: set[str] = set()
    with warnings.catch_warnings():
        before = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], filename: str, line: int, *rest: Any) -> None:
            text = " ".join(str(message).split())
            if not filename.startswith(PACKAGE):
                before(message, category, filename, line, *rest)
            elif text not in said:
                said.add(text)
                log.warning("%s", escaped(text))

        warnings.showwarning = show  # type: ignore[assignment]  # two of its arguments go on as they are
        yield
