"""python -m fedact.simulate: a fleet of clients fine-tunes a model, each under its memory budget."""

import sys
from pathlib import Path
from typing import Any

from fedact.cli.flags import RUNNING, Parser, command, user_path
from fedact.cli.process import run_process
from fedact.config.errors import ConfigError
from fedact.config.folder import default_folder
from fedact.config.loading import make_config, read_toml
from fedact.config.own_code import check_code, code_of, with_code
from fedact.config.paths import expanded
from fedact.config.schema import SETTINGS, Config
from fedact.reports.safe_text import escaped
from fedact.storage.run_folder import RunFolder

FIRST_FIELDS = ("clients", "rounds", "budget", "method", "dataset")


def parser() -> Parser:
    """Return the command line: one flag for each field of Config, and those that are no part of a run."""
    result = Parser("simulate", __doc__ or "")
    result.add_fields(SETTINGS, FIRST_FIELDS)
    running = result.group(RUNNING)
    running.add_argument("--config", type=user_path, metavar="FILE", help="settings in TOML; flags override them")
    running.add_argument("--resume", type=user_path, metavar="DIR", help="resume a run from its last finished round")
    running.add_argument(
        "--own-code", action="store_true", help="let --resume, or --config with a run's file, run its own code"
    )
    running.add_argument("--dry-run", action="store_true", help="print the plans and the partition, train nothing")
    running.add_argument(
        "--list", action="store_true", help="methods with their settings, models, data sets, partitions, devices"
    )
    return result


@command
def main(arguments: list[str]) -> int:
    """Run the command line and return its exit code."""
    settings = parser().settings(arguments)
    names = ("config", "resume", "own_code", "dry_run", "list")
    file, resume, own_code, dry_run, show = (settings.pop(name) for name in names)
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

        return resume_run(resume, workers=workers, own_code=own_code)
    config = read_config(file, settings, own_code)
    from fedact.cli.simulate import show_plans, start_run

    return show_plans(config) if dry_run else start_run(config, config.out or default_folder(config))


def read_config(file: Path | None, settings: dict[str, Any], own_code: bool) -> Config:
    """Return the config of a file's settings, if there is one, and of others, which override them.

    A file with the digests of code, or in the folder of a run, is a run's own: its code is run only where that is allowed.
    """
    of_file = read_toml(file) if file else {}
    config = make_config({**of_file, **settings})
    if file and (of_file.get("code") is not None or RunFolder(expanded(file).parent).is_run()):
        check_code(make_config(of_file), own_code, f"--config {file}")
    elif named := [text for text in code_of(config) if text not in code_of(make_config(settings))]:
        print(escaped(f"fedact: --config {file} names code of its own, which runs: {', '.join(named)}"), file=sys.stderr)
    return with_code(config)


if __name__ == "__main__":
    sys.exit(run_process(main))
