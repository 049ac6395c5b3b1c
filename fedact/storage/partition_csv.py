"""partition.csv: how many examples of each class each client of a run holds, its held-out ones included."""

import csv
import re
from codecs import BOM_UTF8
from collections.abc import Sequence
from io import BytesIO, StringIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedact.config.errors import ConfigError
from fedact.storage.disk import read_bytes

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("client", "label", "examples")
_HEADER = (",".join(COLUMNS) + "\n").encode()
_NUMBERS = rb"(?:0|[1-9][0-9]{0,17}),(?:0|[1-9][0-9]{0,17}),[1-9][0-9]{0,17}"
_ROWS = re.compile(rb"(?:" + _NUMBERS + rb"\n)*+")
NAME = "name"
"""A fourth column, where the clients have names."""
_NAMED_HEADER = (",".join((*COLUMNS, NAME)) + "\n").encode()
_NAMED_ROWS = re.compile(rb"(?:" + _NUMBERS + rb',(?:"(?:[^"\n]|"")+"|[^",\n]+)\n)*+')


def partition_csv(clients: np.ndarray, labels: np.ndarray, names: Sequence[str] | None = None) -> str:
    """Return the text of partition.csv, by client and label: client ``clients[i]`` holds an example of ``labels[i]``.

    names: by client, where they have some; a column of theirs comes last then.
    """
    classes, numbers = np.unique(labels, return_inverse=True)
    pairs, counts = np.unique(clients * len(classes) + numbers, return_counts=True)
    of_client, of_class = np.divmod(pairs, max(1, len(classes)))
    rows = zip(of_client.tolist(), classes[of_class].tolist(), counts.tolist(), strict=True)
    if names is not None:
        text = StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow((*COLUMNS, NAME))
        writer.writerows((client, label, count, names[client]) for client, label, count in rows)
        return text.getvalue()
    return _HEADER.decode() + "".join(f"{client},{label},{count}\n" for client, label, count in rows)


def read_partition_bytes(file: Path) -> bytes:
    """Return the bytes of partition.csv as a run writes them; raises ConfigError where it cannot be read.

    Git on Windows, and editors there, end lines with two characters, or begin a file with a mark.
    """
    return read_bytes(file).removeprefix(BOM_UTF8).replace(b"\r\n", b"\n")


def empty_partition() -> "pd.DataFrame":
    """Return the partition of a run without a partition.csv: its columns, and no row."""
    import pandas as pd

    return pd.DataFrame({name: np.empty(0, np.int64) for name in COLUMNS})


def read_partition(file: Path) -> "pd.DataFrame":
    """Return partition.csv, a row a client and label (int64 columns client, label, examples); empty where there is no file.

    Clients with names have a column ``name`` too, and of them some may hold nothing.

    Raises ConfigError for a file that no run could have written.
    """
    import pandas as pd

    if not file.exists():
        return empty_partition()
    content = read_partition_bytes(file)
    named = content.startswith(_NAMED_HEADER)
    if not named and not content.startswith(_HEADER):
        raise ConfigError(f"{file}, line 1: its columns are {', '.join(COLUMNS)}")
    whole = _NAMED_ROWS.match(content, len(_NAMED_HEADER)) if named else _ROWS.match(content, len(_HEADER))
    assert whole is not None
    if whole.end() < len(content):
        line = content.count(b"\n", 0, whole.end()) + 1
        raise ConfigError(f"{file}, line {line}: a row is a client, a label and at least one example")
    partition = pd.read_csv(
        BytesIO(content), dtype={**dict.fromkeys(COLUMNS, np.int64), NAME: str}, keep_default_na=False
    )  # fmt: skip
    next_client, next_label = (np.diff(partition[name], prepend=-1) for name in ("client", "label"))
    # Every client that has no name holds some examples.
    in_order = ((next_client > 0) if named else (next_client == 1)) | ((next_client == 0) & (next_label > 0))
    if not in_order.all():
        line = int(np.argmin(in_order)) + 2
        raise ConfigError(f"{file}, line {line}: the rows are in the order of clients, from 0, and of labels")
    return partition
