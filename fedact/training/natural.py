"""The shares of a natural partition: what is the server's, what each training client holds, and who is held out."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fedact.config.errors import ConfigError
from fedact.config.natural import NaturalClients
from fedact.config.schema import Config
from fedact.config.seeds import Purpose, generator
from fedact.data import Examples, Source
from fedact.data.partition import stratified
from fedact.data.partition.base import HeldOutParts, Parts
from fedact.data.partition.natural import NOBODY, Owners, Roles, check_client_name, draw_roles, read_owners


@dataclass(frozen=True, eq=False)
class HeldOutClients:
    """Clients that take no part in training. parts: by client, positions in ``examples``. names: theirs."""

    examples: Examples
    parts: Parts
    names: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Dealt:
    """Who has what of a data set.

    server, train: the server's examples and the clients'. parts: by client, (training, held-out) positions in ``train``.
    Of a natural partition alone: names of the clients, server_names of those whose examples the server has, held_out.
    """

    server: Examples
    train: Examples
    parts: HeldOutParts
    names: tuple[str, ...] | None = None
    server_names: tuple[str, ...] = ()
    held_out: HeldOutClients | None = None


def with_owners(config: Config, rule: NaturalClients, source: Source) -> Source:
    """Return the data set with whose each training example is; raises ConfigError where nothing says it."""
    if rule.file is not None:
        owners = read_owners(Path(rule.file), source.train.labels, generator(config.seed, Purpose.PARTITION, client=1))
        return replace(source, train=replace(source.train, clients=owners.clients), client_names=owners.names)
    if source.train.clients is None:
        raise ConfigError(
            f"--partition clients: --dataset {config.dataset} does not say whose its examples are (an npz file says it in "
            "client_train): name a file, --partition clients:FILE.csv, with the columns example and client"
        )
    # Who holds test examples alone is no client of a fleet.
    numbers, clients = np.unique(source.train.clients, return_inverse=True)
    names = tuple(source.client_names[number] for number in numbers.tolist())
    for name in names:
        check_client_name(name, f"--dataset {config.dataset}")
    return replace(source, train=replace(source.train, clients=clients), client_names=names)


def roles_of(config: Config, rule: NaturalClients, source: Source, wanted: Callable[[int], int]) -> Roles:
    """Return what each client is.

    source: before ``--max-examples``. wanted: returns how many of so many examples the server wants.
    """
    owners, every = Owners(_clients(source), source.client_names), len(source.train)
    kept = min(every, config.max_examples or every)
    needed = -(-wanted(kept) * every // kept)
    return draw_roles(rule, owners, needed, config.fleet_size, generator(config.seed, Purpose.PARTITION))


def deal_naturally(config: Config, source: Source, roles: Roles, wanted: int) -> Dealt:
    """Return each share; wanted: how many the server has; what its clients lack of them is taken from nobody's."""
    clients, names = _clients(source), np.array(source.client_names, dtype=object)

    def of(numbers: np.ndarray) -> tuple[np.ndarray, Parts]:
        """Return the positions of these clients' examples, and within these each client's."""
        places = np.full(len(names) + 1, -1)
        places[numbers] = np.arange(len(numbers))
        # NOBODY is the last place.
        owners = places[clients]
        positions = np.flatnonzero(owners >= 0)
        return positions, Parts.by_owner(np.arange(len(positions)), owners[positions], len(numbers))

    nobodys, servers = np.flatnonzero(clients == NOBODY), of(roles.server)[0]
    if len(nobodys):
        short = max(0, wanted - len(servers))
        nobodys = nobodys[stratified(source.train.labels[nobodys], short, generator(config.seed, Purpose.HALVES))]
    server = np.sort(np.concatenate([nobodys, servers]))
    own, parts = of(roles.training)
    for positions, whose in ((server, "the server"), (own, "any client")):
        if not len(positions):
            raise ConfigError(
                f"--partition clients: no example is left for {whose}: more examples (--max-examples), or clients"
            )
    tested, tested_parts = of(roles.held_out)
    held_out = HeldOutClients(source.train.subset(tested), tested_parts, tuple(names[roles.held_out]))
    return Dealt(
        source.train.subset(server),
        source.train.subset(own),
        HeldOutParts(parts, config.seed),
        tuple(names[roles.training]),
        tuple(names[roles.server]),
        held_out if len(tested) else None,
    )


def _clients(source: Source) -> np.ndarray:
    assert source.train.clients is not None
    return source.train.clients
