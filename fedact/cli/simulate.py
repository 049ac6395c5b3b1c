"""A whole session in the terminal: start or resume a run seed by seed, show it as it goes, draw it at the end."""

import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from fedact.cli.console import letters_console, shell_word, show
from fedact.cli.flags import log_to_stderr, one_line, unusable
from fedact.cli.resume import finished_rounds, merged_config, with_workers
from fedact.cli.signals import catch_late, stop_code
from fedact.config.errors import ConfigError, check_extra, shortened
from fedact.config.loading import make_config, read_toml
from fedact.config.own_code import check_code
from fedact.config.schema import Config
from fedact.federation.simulation import OpenGrid, Simulation
from fedact.federation.worker_grid import start_workers
from fedact.processes.pool import Workers
from fedact.reports.run import tables as report
from fedact.reports.run.tensorboard import TensorBoardLog
from fedact.reports.safe_text import escaped
from fedact.storage.disk import make_folder, sweep, unfinished_files, write_whole
from fedact.storage.locks import LOCK_FILE, Locks
from fedact.storage.rows import Row, score_name
from fedact.storage.run import load_run
from fedact.storage.run_folder import RunFolder
from fedact.training.initial_weights import fit_ahead

DONE, FAILED = 0, 1
MOST_REASONS = 3


def start_run(config: Config, out: Path, open_grid: OpenGrid | None = None) -> int:
    """Run a config into a new folder and return the exit code; a folder that holds anything else is never written over.

    A run that was begun there with the same settings goes on: what is finished is not run again, and methods and seeds may
    have been added. open_grid: the way to the clients, by default as the config's runtime says.
    """
    catch_late()
    if reason := unusable(out):
        raise ConfigError(f"--out {shortened(str(out))}: {reason}")
    if RunFolder(out).config.is_file():
        return _go_on(out, partial(merged_config, config, out), open_grid)
    _check_empty(out)
    nearest = next(folder for folder in [out, *out.absolute().parents] if folder.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise ConfigError(f"--out {out} cannot be made: {nearest} is no folder that may be written to")
    with Locks() as locks:
        return _run_seeds(config, out, locks, open_grid)


def resume_run(
    out: Path, open_grid: OpenGrid | None = None, workers: int | str | None = None, own_code: bool = False
) -> int:
    """Go on with a run from its last finished round and return the exit code; a finished run is left as it is.

    workers: instead of the run's own number, or "auto"; rows do not depend on it. own_code: let the code run that the run's
    config names; without it such a run is refused.
    """
    catch_late()
    if reason := unusable(out):
        raise ConfigError(f"--resume {shortened(str(out))}: {reason}")
    file = RunFolder(out).config
    if not file.is_file():
        raise ConfigError(f"--resume {out}: there is no run, {file} does not exist")

    def change(begun: Config) -> Config:
        check_code(begun, own_code, f"--resume {out}")
        return with_workers(begun, workers)

    return _go_on(out, change, open_grid)


def _go_on(out: Path, change: Callable[[Config], Config], open_grid: OpenGrid | None) -> int:
    with Locks() as locks:
        locks.take(out)
        RunFolder(out).check_links(inside=out)
        sweep(out)
        return _run_seeds(change(make_config(read_toml(RunFolder(out).config))), out, locks, open_grid)


def show_plans(config: Config) -> int:
    """Print who holds what and each budget's plan, and write nothing."""
    catch_late()
    log_to_stderr()
    several = len(config.method) * len(config.budget.sizes) > 1
    with start_workers(config) if several else Workers(1) as workers:
        simulation = Simulation(config, workers=workers)
    experiment = simulation.experiment
    names = experiment.client_names
    show(report.partition_table(experiment.train.labels, experiment.parts, config.partition_by, names), prose=True)
    show(*(report.plan_table(plan) for plans in simulation.plans.values() for plan in plans.values()))
    return DONE


def _check_empty(out: Path) -> None:
    """Raise ConfigError where the folder holds more than what a killed process left unfinished."""
    if out.exists() and (not out.is_dir() or set(out.iterdir()) - {*unfinished_files(out), out / LOCK_FILE}):
        raise ConfigError(
            f"--out {out} exists and is not empty: name a new folder, or go on with --resume {shell_word(out)}"
        )


def _run_seeds(config: Config, out: Path, locks: Locks, open_grid: OpenGrid | None) -> int:
    log_to_stderr()
    if config.runtime == "flower" and open_grid is None:
        raise ConfigError("--runtime flower is what `flwr run .` sets; allowed here are local and ray (see its key resume)")
    if config.tensorboard:
        check_extra("tensorboard", "--tensorboard")
    console = letters_console()
    try:
        seeds = range(config.seed, config.seed + config.seeds)
        left = [seed for seed in (_seed_left(config, number, out, locks) for number in seeds) if seed is not None]
        if left:
            with start_workers(config) as workers:
                for seed, _ in zip(left, fit_ahead([seed.config for seed in left], workers), strict=True):
                    _run_seed(seed, config, out, console, locks, open_grid, workers)
        return _finish(out, bool(left))
    except KeyboardInterrupt as stop:
        print(f"\nfedact: interrupted; {_how_to_go_on(out)}", file=sys.stderr)
        return stop_code(stop)
    except OSError as error:
        print(f"fedact: stopped: {one_line(str(error))}; {_how_to_go_on(out)}", file=sys.stderr)
        return FAILED


def _how_to_go_on(out: Path) -> str:
    started = RunFolder(out).config.exists()
    return f"go on with: python -m fedact.simulate --resume {shell_word(out)}" if started else "nothing was written"


@dataclass(frozen=True)
class SeedLeft:
    """A seed of which there is something left to do: its config, its folder, and each method's last finished round."""

    config: Config
    folder: RunFolder
    done: dict[str, int]


def _seed_left(config: Config, seed: int, out: Path, locks: Locks) -> SeedLeft | None:
    """Return what is left to do of one seed, None where that is nothing."""
    folder = RunFolder(out / f"seed-{seed}" if config.seeds > 1 else out)
    one_seed = config.model_copy(update={"seed": seed, "seeds": 1})
    done: dict[str, int] = {}
    folder.check_links(inside=out)
    if folder.records.exists():
        locks.take(folder.path)
        done = finished_rounds(folder, one_seed)
    finished = len(done) == len(config.method) and min(done.values()) >= config.rounds
    return None if finished else SeedLeft(one_seed, folder, done)


def _run_seed(
    seed: SeedLeft,
    config: Config,
    out: Path,
    console: Console,
    locks: Locks,
    open_grid: OpenGrid | None,
    workers: Workers,
) -> None:
    """Run what is left to do of one seed; config: of all seeds."""
    folder, done = seed.folder, seed.done
    # Nothing is written before what a seed stands on and its plans are there.
    simulation = Simulation(seed.config, folder, done, workers)
    _take_new(out, locks)
    # Several seeds have their config beside their folders too, for --resume from any folder.
    whole, file = simulation.config.model_copy(update={"seed": config.seed, "seeds": config.seeds}), RunFolder(out).config
    if whole.seeds > 1 and (not file.exists() or make_config(read_toml(file)) != whole):
        write_whole(file, whole.to_toml())
    make_folder(folder.path)
    locks.take(folder.path)
    folder.sweep()
    simulation.open_folder()
    score = score_name(dict(simulation.config))
    with ExitStack() as watched:
        rounds, scope = simulation.config.rounds, simulation.config.scope
        watchers: list[Any] = [report.LiveReport(console, simulation.methods, rounds, done, score, scope)]
        if config.tensorboard:
            watchers.append(TensorBoardLog(folder, simulation.methods, done, score))
        for watcher in watchers:
            watched.enter_context(watcher)

        def on_round(row: Row, clients: list[Row]) -> None:
            for watcher in watchers:
                watcher.on_round(row, clients)

        simulation.run(on_round, open_grid)


def _take_new(out: Path, locks: Locks) -> None:
    """Keep others out of a new run's folder, and look again whether it is still empty: preparing took its time."""
    if out not in locks.folders:
        make_folder(out)
        locks.take(out)
        _check_empty(out)
        sweep(out)


def _finish(out: Path, worked: bool) -> int:
    """Show the table, draw the figures, and tell a run with failed clients from a good one."""
    # Only the end draws: a run reaches its first round half a second earlier.
    from fedact.reports.run import figures as plots

    run = load_run(out)
    show(report.summary(run), prose=True)
    files = plots.figure_files(run, out)
    missing = plots.save_figures(run, out) if worked or not all(file.exists() for file in files.values()) else {}
    drawn = ", ".join(file.name for name, file in files.items() if name not in missing)
    print(escaped(f"records, plans and figures are in {out} ({drawn})"))
    for name, reason in missing.items():
        print(escaped(f"fedact: {files[name]} was not drawn: {reason}"), file=sys.stderr)
    # A simulated fault is what was asked for.
    unplanned = (run.clients["status"] == "failed") & run.clients["fault"].isna()
    failed: list[Row] = run.clients[unplanned].to_dict("records")  # type: ignore[assignment]
    for row in failed[:MOST_REASONS]:
        where = f"{row['method']}, round {row['round']}, client {row['client']}"
        print(escaped(f"fedact: {where} failed: {row['reason']}"), file=sys.stderr)
    return FAILED if failed else DONE
