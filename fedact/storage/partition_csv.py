"""partition.csv: how many examples of which class each client of a run holds, its held-out ones too."""

import re
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedact.config.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("client", "label", "examples")
_HEADER = (",".join(COLUMNS) + "\n").encode()
_ROWS = re.compile(rb"(?:(?:0|[1-9][0-9]{0,17}),(?:0|[1-9][0-9]{0,17}),[1-9][0-9]{0,17}\n)*+")


def holdings_csv(owners: np.ndarray, labels: np.ndarray) -> str:
    """Return the text of partition.csv, by client and label; ``owners[i]`` holds an example of ``labels[i]``."""
    classes, numbers = np.unique(labels, return_inverse=True)
    pairs, counts = np.unique(owners * len(classes) + numbers, return_counts=True)
    clients, held = np.divmod(pairs, max(1, len(classes)))
    rows = zip(clients.tolist(), classes[held].tolist(), counts.tolist(), strict=True)
    return _HEADER.decode() + "".join(f"{client},{label},{count}\n" for client, label, count in rows)


def no_holdings() -> "pd.DataFrame":
    """Return the holdings of a run that kept none."""
    import pandas as pd

    return pd.DataFrame({name: np.empty(0, np.int64) for name in COLUMNS})


def read_holdings(file: Path) -> "pd.DataFrame":
    """Return partition.csv, a row for each client and class; none where there is no such file.

    Raises ConfigError for a file that no run could have written.
    """
    import pandas as pd

    try:
        content = file.read_bytes()
    except FileNotFoundError:
        return no_holdings()
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from None
    _check_lines(content, file)
    found = pd.read_csv(BytesIO(content), dtype=np.int64)
    _check_order(found["client"].to_numpy(), found["label"].to_numpy(), file)
    return found


def _check_lines(content: bytes, file: Path) -> None:
    """Raise ConfigError for the first line that is no row."""
    if not content.startswith(_HEADER):
        raise ConfigError(f"{file}, line 1: its columns are {', '.join(COLUMNS)}")
    whole = _ROWS.match(content, len(_HEADER))
    assert whole is not None
    if whole.end() < len(content):
        line = content.count(b"\n", 0, whole.end()) + 1
        raise ConfigError(f"{file}, line {line}: a row is a client, a label and at least one example")


def _check_order(clients: np.ndarray, labels: np.ndarray, file: Path) -> None:
    """Raise ConfigError for the first row that is not in its place; every client holds some examples."""
    next_client = np.diff(clients, prepend=-1)
    follows = (next_client == 1) | ((next_client == 0) & (np.diff(labels, prepend=-1) > 0))
    if not follows.all():
        line = int(np.argmin(follows)) + 2
        raise ConfigError(f"{file}, line {line}: the rows are in the order of clients, from 0, and of labels")
