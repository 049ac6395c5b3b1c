"""The folder of a run before anything runs: new, or of a run that goes on, and what of each seed is left to do."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fedact.cli.console import shell_word
from fedact.cli.flags import unusable
from fedact.cli.resume import finished_rounds, merged_config
from fedact.config.baselines import with_baselines
from fedact.config.errors import ConfigError, shortened
from fedact.config.loading import make_config, read_toml
from fedact.config.schema import Config
from fedact.storage.disk import make_folder, sweep, unfinished_files
from fedact.storage.locks import LOCK_FILE, Locks
from fedact.storage.run_folder import RunFolder


def start_in(out: Path, config: Config, locks: Locks) -> Config:
    """Return the config with which a run starts in a folder, or with which the run that was begun there goes on.

    That has the same settings; what is finished is not run again, and methods and seeds may have been added. Raises
    ConfigError for a folder that holds anything else, which is never written over, or that cannot be made.
    """
    if reason := unusable(out):
        raise ConfigError(f"--out {shortened(str(out))}: {reason}")
    if RunFolder(out).config.is_file():
        return go_on_in(out, partial(merged_config, config, out), locks)
    _check_empty(out)
    nearest = next(folder for folder in [out, *out.absolute().parents] if folder.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise ConfigError(f"--out {out} cannot be made: {nearest} is no folder that may be written to")
    return config


def go_on_in(out: Path, change: Callable[[Config], Config], locks: Locks) -> Config:
    """Return the config with which the run in a folder goes on; change: makes it of the one that the run began with."""
    locks.take(out)
    RunFolder(out).check_links(inside=out)
    sweep(out)
    return change(make_config(read_toml(RunFolder(out).config)))


def _check_empty(out: Path) -> None:
    """Raise ConfigError where the folder holds more than what a killed process left unfinished."""
    if out.exists() and (not out.is_dir() or set(out.iterdir()) - {*unfinished_files(out), out / LOCK_FILE}):
        raise ConfigError(
            f"--out {out} exists and is not empty: name a new folder, or go on with --resume {shell_word(out)}"
        )


def take_new(out: Path, locks: Locks) -> None:
    """Keep others out of a new run's folder, and look again whether it is still empty: preparing took its time."""
    if out not in locks.folders:
        make_folder(out)
        locks.take(out)
        _check_empty(out)
        sweep(out)


@dataclass(frozen=True)
class SeedLeft:
    """A seed of which there is something left to do: its config, its folder, and each method's last finished round."""

    config: Config
    folder: RunFolder
    done: dict[str, int]


def seed_left(config: Config, seed: int, out: Path, locks: Locks) -> SeedLeft | None:
    """Return what is left to do of one seed, None where that is nothing."""
    folder = RunFolder(out / f"seed-{seed}" if config.seeds > 1 else out)
    one_seed = config.model_copy(update={"seed": seed, "seeds": 1})
    done: dict[str, int] = {}
    folder.check_links(inside=out)
    if folder.records.exists():
        locks.take(folder.path)
        done = finished_rounds(folder, one_seed)
    finished = len(done) == len(with_baselines(config.method, config.baseline)) and min(done.values()) >= config.rounds
    return None if finished else SeedLeft(one_seed, folder, done)
