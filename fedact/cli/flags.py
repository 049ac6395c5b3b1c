"""What all command lines share: flags from the fields of Config, and one line for what is wrong."""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from textwrap import wrap
from typing import Any, NoReturn

from fedact.cli.signals import stop_code
from fedact.cli.warning_lines import warnings_once
from fedact.config.code_loading import own_failure
from fedact.config.errors import ConfigError, as_flag, nearest, shortened
from fedact.config.paths import expanded
from fedact.config.schema import GROUPS, Config
from fedact.reports.safe_text import escaped

FAILED, BAD_INPUT = 1, 2
MOST_SAID = 2000
"""Characters of an error."""
FIRST, RUNNING = "most used", "running"
"""Titles of groups in the help; the second is one of Config's."""
HELP = "show this help and exit"


class _Columns(argparse.HelpFormatter):
    """Flags on the left, help on the right; no flag is broken at a hyphen."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return wrap(text, width, break_on_hyphens=False)


class Parser(argparse.ArgumentParser):
    """A parser whose help shows flags in groups, and that raises ConfigError; flags are never abbreviated."""

    def __init__(self, command: str, description: str) -> None:
        prog = f"python -m fedact.{command}"
        super().__init__(prog=prog, description=description, allow_abbrev=False, formatter_class=_Columns, add_help=False)
        self._groups: dict[str, argparse._ArgumentGroup] = {}

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)

    def group(self, title: str) -> "argparse._ArgumentGroup":
        """Return the group of flags under a title; groups stand in the order in which they were first asked for.

        >>> parser = Parser("simulate", "")
        >>> parser.group("fleet") is parser.group("fleet")
        True
        """
        if title not in self._groups:
            self._groups[title] = self.add_argument_group(title)
        return self._groups[title]

    def add_fields(self, names: Iterable[str], first: Sequence[str] = (), helps: Mapping[str, str] | None = None) -> None:
        """Add a flag for each of these fields of Config, in the groups of the settings.

        A flag that is not given is not in the result. first: those that matter most, in a group before the others. helps:
        by name, instead of the field's own.
        """
        # Nobody reads a usage of fifty flags.
        self.usage = "%(prog)s [--FLAG VALUE ...]"
        wanted = [*first, *(name for name in names if name not in first)]
        titles = {name: group.title for group in GROUPS for name in group.model_fields} | dict.fromkeys(first, FIRST)
        order = [FIRST, *(group.title for group in GROUPS)]
        for name in sorted(wanted, key=lambda name: order.index(titles[name])):
            self.add_field(name, titles[name], (helps or {}).get(name))
        self.group(RUNNING).add_argument("-h", "--help", action="help", help=HELP)

    def add_field(self, name: str, title: str, says: str | None = None) -> None:
        """Add a flag for a field of Config to a group; says: its help, by default the field's own."""
        field = Config.model_fields[name]
        default = " ".join(field.default) if isinstance(field.default, tuple) else field.default
        shown = "" if default is None or default is False or default == "" else f" [{default}]"
        value: dict[str, Any] = {"action": "append" if isinstance(field.default, tuple) else "store", "metavar": "VALUE"}
        self.group(title).add_argument(
            as_flag(name),
            default=argparse.SUPPRESS,
            help=(says or f"{field.description}{shown}").replace("%", "%%"),
            **({"action": "store_true"} if field.annotation is bool else value),
        )

    def add_files(self, files: Mapping[str, str]) -> None:
        """Add a flag for each output file, with its help."""
        for name, says in files.items():
            self.group(RUNNING).add_argument(f"--{name}", type=user_path, metavar="FILE", help=says)

    def settings(self, arguments: list[str]) -> dict[str, Any]:
        """Return the given flags by name; raises ConfigError for an unknown one, with the nearest."""
        given, strange = self.parse_known_args(arguments)
        if strange:
            flags = [flag for flag in self._option_string_actions if flag.startswith("--")]
            raise ConfigError(f"unknown argument {strange[0]!r}{nearest(strange[0], flags)}")
        return vars(given)


def command(run: Callable[[list[str]], int]) -> Callable[..., int]:
    """Return a command that takes its arguments, by default the process's, and returns the exit code of ``run``.

    A ConfigError is one line on stderr and code 2, an error of the system such as a full disk or of the user's own code one
    line and code 1, an interrupt code 130.
    """

    @wraps(run)
    def main(arguments: list[str] | None = None) -> int:
        try:
            with warnings_once():
                return run(sys.argv[1:] if arguments is None else arguments)
        except ConfigError as error:
            print("fedact:", one_line(str(error)), file=sys.stderr)
            return BAD_INPUT
        except KeyboardInterrupt as stop:
            print("\nfedact: interrupted", file=sys.stderr)
            return stop_code(stop)
        except OSError as error:
            print("fedact: stopped:", one_line(str(error)), file=sys.stderr)
            return FAILED
        except (Exception, SystemExit) as error:
            if (said := own_failure(error)) is None:
                raise
            print("fedact:", one_line(said), file=sys.stderr)
            return FAILED

    return main


def user_path(text: str) -> Path:
    """Return a flag's path, as ``expanded`` does; raises what argparse shows as it is."""
    try:
        return expanded(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def one_line(text: str) -> str:
    """Return a text that a terminal shows as one line, without its middle where it is long."""
    line = escaped(" ".join(text.splitlines()))
    half = MOST_SAID // 2
    return line if len(line) <= MOST_SAID else f"{line[:half]} ... {line[-half:]}"


def unusable(path: Path) -> str | None:
    """Return why the system knows no such path, as of one whose name is too long; None where it could be there."""
    try:
        path.exists()
    except OSError as error:
        return error.strerror
    return None


def check_file(flag: str, file: Path | None, suffix: str = "") -> None:
    """Raise ConfigError for a file that cannot be written, or whose name does not end in the suffix."""
    if file is None:
        return
    folder = file.absolute().parent
    if reason := unusable(file):
        raise ConfigError(f"--{flag} {shortened(str(file))}: {reason}")
    if not folder.is_dir():
        raise ConfigError(f"--{flag} {file}: there is no folder {folder}")
    # A device would be replaced by a file of its name.
    if (file.exists() and not file.is_file()) or not os.access(folder, os.W_OK):
        raise ConfigError(f"--{flag} {file} cannot be written")
    if file.suffix != suffix and suffix:
        raise ConfigError(f"--{flag} {file}: the name of a figure ends in {suffix}")


class _Escaped(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(map(escaped, super().format(record).splitlines()))


def log_to_stderr() -> None:
    """Write log lines of fedact to stderr, so that what takes its time says so."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Escaped("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("fedact").setLevel(logging.INFO)
