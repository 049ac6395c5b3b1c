"""What a run on disk has done, looked at closely before anything goes on from it."""

from collections.abc import Iterable

from fedact.config import Config, make_config
from fedact.errors import ConfigError
from fedact.planning import canonical_methods
from fedact.records import Row, RunFolder

FREE = ("out", "devices", "cache_size", "ray_address")
"""What a run does not follow from."""


def finished_rounds(folder: RunFolder, config: Config) -> dict[str, int]:
    """Return each method's last finished round, with what a killed process left unfinished removed.

    Raises ConfigError for a folder that is not a run of the config's.
    """
    folder.sweep()
    rows = folder.cut_unfinished()
    if not rows:
        folder.records.unlink()
        return {}
    methods = canonical_methods(config)
    _check_config(rows[0], config.model_copy(update={"method": tuple(methods)}), folder)
    _check_rows(rows, methods, config, folder)
    done = {row["method"]: row["round"] for row in rows if row["kind"] == "round"}
    folder.prune(done)
    return done


def _check_config(header: Row, config: Config, folder: RunFolder) -> None:
    """Raise ConfigError where the run began with other settings; what the config leaves open, the header may say."""
    began = make_config(header["config"])
    for name in Config.model_fields:
        now, then = getattr(config, name), getattr(began, name)
        if name not in FREE and now not in (None, then):
            raise ConfigError(
                f"{folder.config} says {name} {now}, but the run in {folder.records} began with {then}: start another run"
            )


def _check_rows(rows: Iterable[Row], methods: list[str], config: Config, folder: RunFolder) -> None:
    for number, row in enumerate(rows, start=1):
        if row["kind"] == "run":
            continue
        fits = row["method"] in methods and row["round"] <= config.rounds and row["seed"] == config.seed
        if not fits or row.get("client", 0) >= config.clients:
            raise ConfigError(f"{folder.records}, line {number}, is of another run than {folder.config}")
