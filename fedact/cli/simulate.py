"""A whole session in the terminal: start or resume a run seed by seed, show it as it goes, draw it at the end."""

import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from fedact.cli.console import letters_console, shell_word, show
from fedact.cli.flags import log_to_stderr, one_line, unusable
from fedact.cli.folders import SeedLeft, go_on_in, seed_left, start_in, take_new
from fedact.cli.resume import with_workers
from fedact.cli.signals import catch_late, stop_code
from fedact.config.errors import ConfigError, check_extra, shortened
from fedact.config.loading import make_config, read_toml
from fedact.config.own_code import check_code
from fedact.config.schema import Config
from fedact.federation.simulation import OpenGrid, Simulation
from fedact.federation.worker_grid import start_workers
from fedact.processes.pool import Workers
from fedact.reports.method_label import method_label
from fedact.reports.run import tables as report
from fedact.reports.run.tensorboard import TensorBoardLog
from fedact.reports.safe_text import escaped
from fedact.storage.disk import make_folder, write_whole
from fedact.storage.locks import Locks
from fedact.storage.rows import Row, score_name
from fedact.storage.run import load_run
from fedact.storage.run_folder import RunFolder
from fedact.training.initial_weights import fit_ahead

DONE, FAILED = 0, 1
MOST_REASONS = 3


def start_run(config: Config, out: Path, open_grid: OpenGrid | None = None) -> int:
    """Run a config into a new folder and return the exit code; see ``start_in`` for a folder that holds something.

    open_grid: the way to the clients, by default as the config's runtime says.
    """
    catch_late()
    with Locks() as locks:
        return _session(start_in(out, config, locks), out, locks, open_grid)


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

    with Locks() as locks:
        return _session(go_on_in(out, change, locks), out, locks, open_grid)


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
    if experiment.client_names is not None:
        held_out = experiment.held_out.names if experiment.held_out else ()
        for what, clients in (("the server's", experiment.server_names), ("held out", held_out)):
            print(escaped(f"{what}: {', '.join(clients) or 'nobody'}"))
    show(*(report.plan_table(plan) for method in simulation.config.method for plan in simulation.plans[method].values()))
    return DONE


def _session(config: Config, out: Path, locks: Locks, open_grid: OpenGrid | None) -> int:
    log_to_stderr()
    try:
        return show_end(out, run_seeds(config, out, locks, open_grid))
    except KeyboardInterrupt as stop:
        print(f"\nfedact: interrupted; {_how_to_go_on(out)}", file=sys.stderr)
        return stop_code(stop)
    except OSError as error:
        print(f"fedact: stopped: {one_line(str(error))}; {_how_to_go_on(out)}", file=sys.stderr)
        return FAILED


def run_seeds(
    config: Config, out: Path, locks: Locks, open_grid: OpenGrid | None = None, command: str | None = None
) -> bool:
    """Run what is left to do of every seed, shown as it goes; returns whether there was anything.

    command: what the run's first row says that it was called by, by default this process's command line.
    """
    if config.runtime == "flower" and open_grid is None:
        raise ConfigError("--runtime flower is what `flwr run .` sets; allowed here are local and ray (see its key resume)")
    if config.tensorboard:
        check_extra("tensorboard", "--tensorboard")
    seeds = range(config.seed, config.seed + config.seeds)
    left = [seed for seed in (seed_left(config, number, out, locks) for number in seeds) if seed is not None]
    if left:
        with start_workers(config) as workers:
            session = Session(config, out, letters_console(), locks, open_grid, workers, command)
            for seed, _ in zip(left, fit_ahead([seed.config for seed in left], workers), strict=True):
                _run_seed(seed, session)
    return bool(left)


def _how_to_go_on(out: Path) -> str:
    started = RunFolder(out).config.exists()
    return f"go on with: python -m fedact.simulate --resume {shell_word(out)}" if started else "nothing was written"


@dataclass(frozen=True)
class Session:
    """What all seeds of a run share; config: of all of them."""

    config: Config
    out: Path
    console: Console
    locks: Locks
    open_grid: OpenGrid | None
    workers: Workers
    command: str | None


def _run_seed(seed: SeedLeft, session: Session) -> None:
    """Run what is left to do of one seed."""
    config, out = session.config, session.out
    folder, done = seed.folder, seed.done
    # Nothing is written before what a seed stands on and its plans are there.
    simulation = Simulation(seed.config, folder, done, session.workers)
    take_new(out, session.locks)
    # Several seeds have their config beside their folders too, for --resume from any folder.
    whole, file = simulation.config.model_copy(update={"seed": config.seed, "seeds": config.seeds}), RunFolder(out).config
    if whole.seeds > 1 and (not file.exists() or make_config(read_toml(file)) != whole):
        write_whole(file, whole.to_toml())
    make_folder(folder.path)
    session.locks.take(folder.path)
    folder.sweep()
    simulation.open_folder(session.command)
    score = score_name(dict(simulation.config))
    with ExitStack() as watched:
        rounds, scope = simulation.config.rounds, simulation.config.scope
        watchers: list[Any] = [report.LiveReport(session.console, simulation.methods, rounds, done, score, scope)]
        if config.tensorboard:
            watchers.append(TensorBoardLog(folder, simulation.methods, done, score))
        for watcher in watchers:
            watched.enter_context(watcher)

        def on_round(row: Row, clients: list[Row]) -> None:
            for watcher in watchers:
                watcher.on_round(row, clients)

        simulation.run(on_round, session.open_grid)


def show_end(out: Path, worked: bool) -> int:
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
        where = f"{method_label(row['method'])}, round {row['round']}, client {row['client']}"
        print(escaped(f"fedact: {where} failed: {row['reason']}"), file=sys.stderr)
    return FAILED if failed else DONE
