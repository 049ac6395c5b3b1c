"""python -m fedact.simulate: a fleet of clients fine-tunes a model, each under its memory budget."""

import sys
import time
from pathlib import Path

from fedact.cli.flags import RUNNING, Parser, command, user_path
from fedact.cli.process import run_process
from fedact.config.errors import ConfigError
from fedact.config.loading import make_config, read_toml
from fedact.config.schema import Config

FIRST_FIELDS = ("clients", "rounds", "budget", "method", "dataset")


def parser() -> Parser:
    """Return the command line: one flag for each field of Config, and those that are no part of a run."""
    result = Parser("simulate", __doc__ or "")
    result.add_fields(Config.model_fields, FIRST_FIELDS)
    running = result.group(RUNNING)
    running.add_argument("--config", type=user_path, metavar="FILE", help="settings in TOML; flags override them")
    running.add_argument("--resume", type=user_path, metavar="DIR", help="resume a run from its last finished round")
    running.add_argument("--dry-run", action="store_true", help="print the plans and the partition, train nothing")
    running.add_argument(
        "--list", action="store_true", help="methods with their settings, models, data sets, partitions, devices"
    )
    return result


@command
def main(arguments: list[str]) -> int:
    """Run the command line and return its exit code."""
    settings = parser().settings(arguments)
    file, resume, dry_run, show = (settings.pop(name) for name in ("config", "resume", "dry_run", "list"))
    if show:
        from fedact.cli.listing import show_tables

        return show_tables(settings.get("devices"))
    if resume:
        workers = settings.pop("workers", None)
        if settings or file or dry_run:
            raise ConfigError(
                "--resume takes everything but --workers from the run's own config.toml: leave out the other settings"
            )
        from fedact.cli.simulate import resume_run

        return resume_run(resume, workers=workers)
    config = make_config({**(read_toml(file) if file else {}), **settings})
    from fedact.cli.simulate import show_plans, start_run

    return show_plans(config) if dry_run else start_run(config, config.out or default_folder(config))


def default_folder(config: Config) -> Path:
    """Return runs/<time>-<dataset>-<model>."""
    return Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{config.dataset}-{config.model}"


if __name__ == "__main__":
    sys.exit(run_process(main))
