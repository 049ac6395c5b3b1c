"""A whole session in the terminal: start or resume a run seed by seed, show it as it goes, draw it at the end."""

import os
import sys
from pathlib import Path

from rich.console import Console

from fedact import report
from fedact.config import Config, make_config, read_toml
from fedact.errors import ConfigError
from fedact.flags import log_to_stderr
from fedact.records import Row, RunFolder, load_run, write_whole
from fedact.runtime import OpenGrid, Simulation

DONE, FAILED, INTERRUPTED = 0, 1, 130
MOST_REASONS = 3


def start_run(config: Config, out: Path, open_grid: OpenGrid | None = None) -> int:
    """Run a config into a new folder and return the exit code; a folder that holds anything is never written over.

    open_grid: the way to the clients, by default as the config's runtime says.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out {out} exists and is not empty: name a new folder, or go on with --resume {out}")
    nearest = next(folder for folder in [out, *out.absolute().parents] if folder.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise ConfigError(f"--out {out} cannot be made: {nearest} is no folder that may be written to")
    return _run_seeds(config, out, open_grid)


def resume_run(out: Path, open_grid: OpenGrid | None = None) -> int:
    """Go on with a run from its last finished round and return the exit code; a finished run is left as it is."""
    file = RunFolder(out).config
    if not file.is_file():
        raise ConfigError(f"--resume {out}: there is no run, {file} does not exist")
    return _run_seeds(make_config(read_toml(file)), out, open_grid)


def show_plans(config: Config) -> int:
    """Print who holds what and each budget's plan, and write nothing."""
    log_to_stderr()
    simulation, console = Simulation(config), Console()
    console.print(report.partition_table(simulation.experiment.train.labels, simulation.experiment.parts))
    for plans in simulation.plans.values():
        for plan in plans.values():
            console.print(report.plan_table(plan))
    return DONE


def _run_seeds(config: Config, out: Path, open_grid: OpenGrid | None) -> int:
    log_to_stderr()
    if config.runtime == "flower" and open_grid is None:
        raise ConfigError("--runtime flower is what `flwr run .` sets; allowed here are local and ray (see its key resume)")
    console, worked = Console(), False
    try:
        for seed in range(config.seed, config.seed + config.seeds):
            worked = _run_seed(config, seed, out, console, open_grid) or worked
        return _finish(out, console, worked)
    except KeyboardInterrupt:
        started = RunFolder(out).config.exists()
        how = f"go on with: python -m fedact.simulate --resume {out}" if started else "nothing was written"
        print(f"\nfedact: interrupted; {how}", file=sys.stderr)
        return INTERRUPTED


def _run_seed(config: Config, seed: int, out: Path, console: Console, open_grid: OpenGrid | None) -> bool:
    """Run what is left to do of one seed; returns False where that is nothing."""
    folder = RunFolder(out / f"seed-{seed}" if config.seeds > 1 else out)
    done = _done(folder)
    if len(done) == len(config.method) and min(done.values()) >= config.rounds:
        return False
    # Nothing is written before what a seed stands on and its plans are there.
    simulation = Simulation(config.model_copy(update={"seed": seed, "seeds": 1}), folder)
    _keep_config(config, out)
    if not folder.records.exists():
        simulation.open_folder()
    with report.LiveReport(console, simulation.methods, simulation.config.rounds, done) as live:
        simulation.run(live.on_round, done, open_grid)
    return True


def _keep_config(config: Config, out: Path) -> None:
    """Keep the config of several seeds beside their folders, for --resume."""
    if config.seeds > 1 and not RunFolder(out).config.exists():
        out.mkdir(parents=True, exist_ok=True)
        write_whole(RunFolder(out).config, config.model_copy(update={"out": None, "devices": None}).to_toml())


def _done(folder: RunFolder) -> dict[str, int]:
    """Cut an unfinished tail off the records and return each method's last finished round."""
    if not folder.records.exists():
        return {}
    rows = folder.cut_unfinished()
    if not rows:
        folder.records.unlink()
    return {row["method"]: row["round"] for row in rows if row["kind"] == "round"}


def _finish(out: Path, console: Console, worked: bool) -> int:
    """Show the table, draw the figures, and tell a run with failed clients from a good one."""
    # Only the end draws: a run reaches its first round half a second earlier.
    from fedact import plots

    run = load_run(out)
    console.print(report.summary(run))
    files = plots.save_figures(run, out) if worked else [out / f"{name}.png" for name in plots.FIGURES]
    console.print(f"records, plans and figures are in {out} ({', '.join(file.name for file in files)})", soft_wrap=True)
    # A simulated fault is what was asked for.
    really = (run.clients["status"] == "failed") & run.clients["fault"].isna()
    failed: list[Row] = run.clients[really].to_dict("records")  # type: ignore[assignment]
    for row in failed[:MOST_REASONS]:
        where = f"{row['method']}, round {row['round']}, client {row['client']}"
        print(f"fedact: {where} failed: {row['reason']}", file=sys.stderr)
    return FAILED if failed else DONE
