"""The partition that nobody deals: every client holds the examples that are its own in the data."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from fedact.config.errors import ConfigError
from fedact.config.paths import expanded
from fedact.config.spec import build, spell

NATURAL = "clients"
"""The partition's name."""


@dataclass(frozen=True)
class NaturalClients:
    """Each client holds what is its own in the data, or in a CSV file with the columns example and client.

    file: that file, by default the data set says whose each example is. server: the share of the clients whose examples are
    the server's, by default as many as it takes. held_out: the share of the clients that take no part in training, on whom
    the global model is tested. min_partition_size: a client that holds fewer examples is skipped. Nobody gets another's.
    """

    file: str | None = None
    server: float | None = None
    held_out: float = 0.0
    min_partition_size: int = field(default=1, kw_only=True)

    def __post_init__(self) -> None:
        for name in ("server", "held_out"):
            share = getattr(self, name)
            if share is not None and not 0 <= share < 1:
                raise ConfigError(f"{NATURAL}: {name} is a share of the clients, at least 0 and below 1, not {share:g}")
        if (self.server or 0) + self.held_out >= 1:
            raise ConfigError(
                f"{NATURAL}: server={self.server:g} and held_out={self.held_out:g} leave no client to train: "
                "together they are below 1"
            )
        if self.min_partition_size < 1:
            raise ConfigError(f"{NATURAL}: min_partition_size is at least 1, not {self.min_partition_size}")


def natural_clients(text: str) -> NaturalClients | None:
    """Return the natural partition behind a text, None for one that is dealt; raises ConfigError for wrong settings.

    Its file may be written without ``file=``, where it comes first.

    >>> natural_clients("clients:who.csv,held_out=0.2")
    NaturalClients(file='who.csv', server=None, held_out=0.2, min_partition_size=1)
    >>> natural_clients("iid")
    """
    name, _, rest = text.strip().partition(":")
    if name != NATURAL:
        return None
    if rest and "=" not in rest.partition(",")[0]:
        rest = f"file={rest}"
    return build("partition", {NATURAL: NaturalClients}, f"{name}:{rest}" if rest else name)


def partition_in_full(text: str) -> str:
    """Return a natural partition's full name, its file with an absolute path; another partition as it was written."""
    found = natural_clients(text)
    if found is None:
        return text
    if found.file is not None:
        found = replace(found, file=str(Path(expanded(found.file)).absolute()))
    return spell(NATURAL, found)
