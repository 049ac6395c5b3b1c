"""Checks of a run on disk before it goes on, and methods and seeds that are added to it."""

from pathlib import Path
from typing import Any

from fedact.config.baselines import with_baselines
from fedact.config.errors import ConfigError
from fedact.config.loading import make_config
from fedact.config.own_code import merged_code
from fedact.config.schema import Config
from fedact.federation.planning import canonical_methods
from fedact.storage.rows import redrawn_test_set
from fedact.storage.run_folder import RunFolder

FREE = ("out", "devices", "cache_size", "ray_address", "tensorboard", "workers")
"""Settings without influence on results; ignored when the configs of a run are compared."""
GROWING = ("method", "baseline", "seeds", "code")
"""Settings to which values may be added when a run goes on."""
AS_GIVEN = ("cache_size", "ray_address", "tensorboard", "workers")
"""Settings taken from the new command line on resume."""


def merged_config(given: Config, out: Path, begun: Config) -> Config:
    """Return the config with which the run in a folder goes on when it is started again: methods and seeds may be added.

    given: of the new command line. begun: of the run, which fills in what was not given. Raises ConfigError where they
    differ in anything else.
    """
    # Paths as a run on disk writes them.
    paths: dict[str, Any] = {}
    if given.data_dir is not None:
        paths["data_dir"] = given.data_path().absolute()
    for name in ("weights", "pretrain_from"):
        if (text := str(getattr(given, name))) not in ("none", "pretrain", "imagenet"):
            paths[name] = str(Path(text).absolute())
    given = given.model_copy(update=paths)
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
    grown: dict[str, Any] = {"method": tuple(methods), "baseline": tuple(dict.fromkeys([*begun.baseline, *given.baseline]))}
    grown |= {"seeds": max(given.seeds, begun.seeds), "code": merged_code(begun, given)}
    return begun.model_copy(update={**grown, **other})


def with_workers(begun: Config, workers: int | str | None) -> Config:
    """Return a run's config with another number of workers, if one is given; raises ConfigError where it can have none."""
    return (
        begun if workers is None else make_config({**begun.model_dump(mode="json", exclude_none=True), "workers": workers})
    )


def _goes_on(name: str, then: Any, now: Any) -> bool:
    """Tell whether a run that began with one value of a setting may go on with another."""
    if name == "code":
        return dict(then or {}).items() <= dict(now or {}).items()
    return set(then) <= set(now) if name in ("method", "baseline") else now in (None, then)


def finished_rounds(folder: RunFolder, config: Config) -> dict[str, int]:
    """Return each method's last finished round; what a killed process left unfinished is removed from the folder.

    Raises ConfigError for a folder whose run has another config.
    """
    folder.sweep()
    rows = folder.cut_unfinished()
    if not rows:
        folder.records.unlink()
        return {}
    config = config.model_copy(update={"method": tuple(canonical_methods(config))})
    began, names = make_config(rows[0]["config"]), with_baselines(config.method, config.baseline)
    for name in Config.model_fields:
        now, then = getattr(config, name), getattr(began, name)
        if name not in FREE and not _goes_on(name, then, now):
            raise ConfigError(
                f"{folder.config} says {name} {now}, but the run in {folder.records} began with {then}: start another run"
            )
    for number, row in enumerate(rows, start=1):
        if row["kind"] == "run":
            continue
        fits = row["method"] in names and row["round"] <= config.rounds and row["seed"] == config.seed
        if not fits or row.get("client", 0) >= config.fleet_size:
            raise ConfigError(f"{folder.records}, line {number}, is of another run than {folder.config}")
    done = {row["method"]: row["round"] for row in rows if row["kind"] == "round"}
    if redrawn_test_set(rows[0]) and any(done.get(method, -1) < config.rounds for method in config.method):
        raise ConfigError(
            f"{folder.records} was begun by an earlier fedact, which measured accuracy on a redrawn part of the test set, "
            "and would go on with the whole: start another run"
        )
    folder.prune(done)
    return done
