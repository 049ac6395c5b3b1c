"""python -m fedact.simulate: a fleet of clients fine-tunes a model, each under its memory budget."""

import argparse
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from fedact.config import Config, make_config, read_toml
from fedact.errors import ConfigError, nearest

BAD_INPUT, INTERRUPTED = 2, 130


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def parser() -> argparse.ArgumentParser:
    """Return the command line: one flag a field of Config, and what is no part of a run."""
    result = _Parser(prog="python -m fedact.simulate", description=__doc__, allow_abbrev=False)
    result.add_argument("--config", type=Path, metavar="FILE", help="settings in TOML; flags come before them")
    result.add_argument("--resume", type=Path, metavar="DIR", help="go on with a run from its last finished round")
    result.add_argument("--dry-run", action="store_true", help="show the plans and who holds what, train nothing")
    result.add_argument("--list", action="store_true", help="methods with their settings, models, data sets, partitions")
    for name, field in Config.model_fields.items():
        default = "" if field.default in (None, False) else f" [{_shown(field.default)}]"
        value: dict[str, Any] = {"action": "append" if name == "method" else "store", "metavar": "VALUE"}
        result.add_argument(
            f"--{name.replace('_', '-')}",
            default=argparse.SUPPRESS,
            help=f"{field.description}{default}".replace("%", "%%"),
            **({"action": "store_true"} if field.annotation is bool else value),
        )
    return result


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    try:
        return _main(sys.argv[1:] if arguments is None else arguments)
    except ConfigError as error:
        print("fedact:", " ".join(str(error).splitlines()), file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("\nfedact: interrupted; nothing was written", file=sys.stderr)
        return INTERRUPTED


def _main(arguments: list[str]) -> int:
    given, strange = parser().parse_known_args(arguments)
    if strange:
        flags = [f"--{name.replace('_', '-')}" for name in (*Config.model_fields, "config", "resume", "dry-run", "list")]
        raise ConfigError(f"unknown argument {strange[0]!r}{nearest(strange[0], flags)}")
    settings = vars(given)
    file, resume, dry_run, show = (settings.pop(name) for name in ("config", "resume", "dry_run", "list"))
    if show:
        from fedact.catalogue import show_tables

        return show_tables()
    if resume:
        if settings or file or dry_run:
            raise ConfigError("--resume takes everything from the run's own config.toml: leave out the other settings")
        from fedact.session import resume_run

        return resume_run(resume)
    config = make_config({**(read_toml(file) if file else {}), **settings})
    from fedact.session import show_plans, start_run

    return show_plans(config) if dry_run else start_run(config, config.out or default_folder(config))


def default_folder(config: Config) -> Path:
    """Return runs/<time>-<dataset>-<model>."""
    return Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{config.dataset}-{config.model}"


def _shown(value: Any) -> str:
    return " ".join(value) if isinstance(value, tuple) else str(value)


if __name__ == "__main__":
    sys.exit(main())
