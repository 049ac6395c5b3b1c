"""The initial weights of a run's seeds, fitted at the same time by processes that are free, and found again on disk."""

import logging
from collections.abc import Iterator, Sequence

from fedact.config.schema import Config
from fedact.processes.pool import Workers
from fedact.training.workspace import prepare

log = logging.getLogger(__name__)


def fit_ahead(configs: Sequence[Config], workers: Workers) -> Iterator[None]:
    """Fit the initial weights of several seeds, and yield when each seed's are there, in order; later ones go on meanwhile.

    Where there is nothing to do at the same time, or nothing to fit, nothing is done. Errors are left to who prepares the
    seed itself: the same will come up there.

    configs: one a seed.
    """
    fits = [config.weights == "pretrain" or config.head_epochs > 0 for config in configs]
    if workers.count == 1 or len(configs) == 1 or not all(fits):
        yield from (None for _ in configs)
        return
    log.info(f"initial weights of {len(configs)} seeds, in {workers.count} processes")
    for outcome in workers.map(fit, configs):
        log.debug("initial weights: %s", outcome.error or "there")
        yield


def fit(config: Config) -> None:
    """Let the initial weights of a config be on disk."""
    prepare(config)
