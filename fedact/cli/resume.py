"""What a run on disk has done, looked at closely before anything goes on from it."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fedact.config.errors import ConfigError
from fedact.config.loading import make_config
from fedact.config.schema import Config
from fedact.federation.planning import canonical_methods
from fedact.storage.rows import Row
from fedact.storage.run_folder import RunFolder

FREE = ("out", "devices", "cache_size", "ray_address", "tensorboard")
"""What a run does not follow from."""
GROWING = ("method", "seeds")
"""What may be added to a run."""
AS_GIVEN = ("cache_size", "ray_address", "tensorboard")
"""What may be another when a run goes on."""


def grown(given: Config, out: Path, begun: Config) -> Config:
    """Return the config with which the run in a folder goes on, when it is started again: methods and seeds may be added.

    Raises ConfigError where the run was begun with other settings; what was not given, it may say.
    """
    given = _with_absolute_paths(given)
    for name in Config.model_fields:
        now, then = getattr(given, name), getattr(begun, name)
        if name not in (*FREE, *GROWING) and now not in (None, then):
            raise ConfigError(
                f"--out {out} holds a run with {name} {then}, not {now}: name a new folder, or go on with --resume {out}"
            )
    if given.seeds > begun.seeds == 1:
        raise ConfigError(f"--out {out} holds a run of one seed, to which none can be added: name a new folder")
    methods = dict.fromkeys([*begun.method, *canonical_methods(given)])
    other = {name: getattr(given, name) for name in AS_GIVEN}
    return begun.model_copy(update={"method": tuple(methods), "seeds": max(given.seeds, begun.seeds), **other})


def _with_absolute_paths(config: Config) -> Config:
    """Return the config with its paths written as a run on disk writes them."""
    paths: dict[str, Any] = {}
    if config.data_dir is not None:
        paths["data_dir"] = config.data_path().absolute()
    for name in ("weights", "pretrain_from"):
        if (given := str(getattr(config, name))) not in ("none", "pretrain", "imagenet"):
            paths[name] = str(Path(given).expanduser().absolute())
    return config.model_copy(update=paths)


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
        if name == "method" and set(then) <= set(now):
            continue
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
