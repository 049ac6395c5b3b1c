"""Whose each example is, where the data or a file says so, and which of these clients train, or are the server's."""

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import numpy as np

from fedact.config.errors import ConfigError, nearest
from fedact.config.natural import NaturalClients

NOBODY = -1
"""Whose an example is that no client holds: the server's."""
COLUMNS = ("example", "client")
COUNTED = ("client", "label", "examples")
"""The first columns of a run's own partition.csv."""
LONGEST_NAME = 200


@dataclass(frozen=True, eq=False)
class Owners:
    """clients: int64 (examples,), whose each example is as a number of the names, or NOBODY. names: of the clients."""

    clients: np.ndarray
    names: tuple[str, ...]

    @property
    def sizes(self) -> np.ndarray:
        """How many examples each client holds."""
        return np.bincount(self.clients[self.clients != NOBODY], minlength=len(self.names))


def read_owners(file: Path, labels: np.ndarray, random: np.random.Generator) -> Owners:
    """Return whose the training examples are by a CSV file; what no line names is nobody's.

    Columns: example, a position in the training set, empty for a client that holds none, and client, a number or a name;
    others are left out. Or those of a run's partition.csv: so many examples of each label are then drawn at random.
    labels: int64 (examples,). Raises ConfigError for a file that says anything else.
    """
    lines = _lines(file)
    _, head = next(lines, (1, []))
    if tuple(head[:3]) == COUNTED:
        return _drawn(file, head, lines, labels, random)
    if missing := [name for name in COLUMNS if name not in head]:
        near = nearest(missing[0], head)
        found = (
            f"not {', '.join(head)}{', with commas between them' if len(head) == 1 else near}"
            if any(head)
            else "but it has none"
        )
        raise ConfigError(f"{file}, line 1: its columns are {' and '.join(COLUMNS)}, {found}")
    if twice := [name for name in COLUMNS if head.count(name) > 1]:
        raise ConfigError(f"{file}, line 1: there are several columns {twice[0]}")
    at, who = (head.index(name) for name in COLUMNS)
    holders: dict[int, str] = {}
    names: dict[str, None] = {}
    for number, line in lines:
        where, position, name = f"{file}, line {number}", _cell(line, at), _cell(line, who)
        check_client_name(name, where)
        names[name] = None
        if not position:
            continue
        example = _whole(position, "an example", where)
        if example >= len(labels):
            raise ConfigError(f"{where}: there is no example {example:,}, the training set has {len(labels):,}")
        if example in holders:
            raise ConfigError(f"{where}: example {example:,} is given twice, to {holders[example]!r} and to {name!r}")
        holders[example] = name
    return _owners(file, holders, names, len(labels))


def _drawn(
    file: Path, head: Sequence[str], lines: Iterator[tuple[int, list[str]]], labels: np.ndarray, random: np.random.Generator
) -> Owners:
    """Return owners by numbers of examples: line by line so many of a label, of those that are left."""
    left = {int(label): random.permutation(np.flatnonzero(labels == label)).tolist() for label in np.unique(labels)}
    named = head.index("name") if "name" in head else 0
    holders: dict[int, str] = {}
    names: dict[str, None] = {}
    for number, line in lines:
        where, name = f"{file}, line {number}", _cell(line, named)
        check_client_name(name, where)
        names[name] = None
        label, count = (_whole(_cell(line, place), what, where) for place, what in ((1, "a label"), (2, "a number")))
        pool = left.get(label, [])
        if count > len(pool):
            raise ConfigError(f"{where}: {count:,} examples of label {label}, but only {len(pool):,} are left of it")
        holders.update((pool.pop(), name) for _ in range(count))
    return _owners(file, holders, names, len(labels))


def _lines(file: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield each line that is not empty with its number, as cells without spaces around them."""
    if file.exists() and not file.is_file():
        # Reading a pipe or a device may never end.
        raise ConfigError(f"--partition clients:{file} cannot be read: it is no file")
    try:
        text = file.read_text(encoding="utf-8-sig")
        reader = csv.reader(StringIO(text, newline=""), strict=True)
        for cells in reader:
            if any(cells):
                yield reader.line_num, [cell.strip() for cell in cells]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise ConfigError(f"--partition clients:{file} cannot be read: {reason}") from None


def _cell(line: Sequence[str], place: int) -> str:
    return line[place] if place < len(line) else ""


def check_client_name(name: str, where: str) -> None:
    """Raise ConfigError for what is no name of a client; where: the place in the data, for the message."""
    if not name or len(name) > LONGEST_NAME or not name.isprintable():
        raise ConfigError(f"{where}: a client is a number or a name of at most {LONGEST_NAME} letters, not {name[:50]!r}")


def _whole(text: str, what: str, where: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise ConfigError(f"{where}: {what} is a whole number from 0, not {text[:50]!r}")
    return int(text)


def _owners(file: Path, holders: dict[int, str], names: dict[str, None], examples: int) -> Owners:
    if not holders:
        raise ConfigError(f"{file} names no example's client")
    # Numbers in their order, before names in theirs: the order of lines means nothing.
    order: Callable[[str], tuple[bool, int, str]] = lambda name: (not name.isdigit(), len(name) * name.isdigit(), name)  # noqa: E731
    ordered = sorted(names, key=order)
    numbers = {name: number for number, name in enumerate(ordered)}
    clients = np.full(examples, NOBODY)
    clients[list(holders)] = [numbers[name] for name in holders.values()]
    return Owners(clients, tuple(ordered))


@dataclass(frozen=True, eq=False)
class Roles:
    """The numbers of the clients that are the server's, that are held out, and that train; each rising."""

    server: np.ndarray
    held_out: np.ndarray
    training: np.ndarray


def draw_roles(
    rule: NaturalClients, owners: Owners, server_examples: int, clients: int, random: np.random.Generator
) -> Roles:
    """Return what each client is, as many of each kind under any seed.

    server_examples: how many the server wants; where no client holds so many, it needs none's. clients: how many train, 0
    for all that are left. The server's and the held-out ones hold examples; which they are is drawn at random. Raises
    ConfigError where too few are left.
    """
    count, sizes = len(owners.names), owners.sizes
    unowned = len(owners.clients) - int(sizes.sum())
    order = random.permutation(count)
    order = np.concatenate([order[sizes[order] > 0], order[sizes[order] == 0]])
    of_server = _count(rule.server, count)
    if rule.server is None and unowned < server_examples:
        of_server = max(1, -(-count * (server_examples - unowned) // int(sizes.sum())))
    if not of_server and not unowned:
        raise ConfigError("--partition clients: server=0 leaves the server no examples: each one is some client's")
    held_out = _count(rule.held_out, count)
    left = count - of_server - held_out
    if left < max(1, clients):
        raise ConfigError(
            f"--partition clients: the data has {count:,} clients, {of_server:,} of them the server's (server=SHARE) and "
            f"{held_out:,} held out (held_out=SHARE): {max(0, left):,} are left to train, not {max(1, clients):,}"
        )
    server, tested, rest = np.split(order, [of_server, of_server + held_out])
    # Those without examples are as likely as others to be among the first.
    rest = random.permutation(rest)
    return Roles(np.sort(server), np.sort(tested), np.sort(rest[: clients or None]))


def _count(share: float | None, clients: int) -> int:
    return max(1, round(share * clients)) if share else 0
