"""python -m fedact.compare: runs side by side, as tables, figures and one report.html that opens offline."""

import os
import sys

from fedact.cli.flags import HELP, Parser, command, user_path
from fedact.cli.process import run_process
from fedact.config.errors import ConfigError

ACCURACY_HELP = "target of 'rounds to', an accuracy or mean IoU such as 0.9 or 90%% [95 %% of the best at the end]"

REPLICATION_HELP = "print memory as the paper's replication reports it too, beside all bytes held"


def parser() -> Parser:
    """Return the command line: the runs, and where to write."""
    result = Parser("compare", __doc__ or "")
    result.add_argument("runs", nargs="+", type=user_path, metavar="RUN", help="folder of a run (--out of fedact.simulate)")
    result.add_argument(
        "--out", type=user_path, metavar="DIR", help="folder of the figures and the report [the first run's]"
    )
    result.add_argument("--replication", action="store_true", help=REPLICATION_HELP)
    result.add_argument("--accuracy", metavar="VALUE", help=ACCURACY_HELP)
    result.add_argument("-h", "--help", action="help", help=HELP)
    return result


@command
def main(arguments: list[str]) -> int:
    """Run the command line and return its exit code."""
    given = parser().settings(arguments)
    target = None if given["accuracy"] is None else read_share("--accuracy", given["accuracy"])
    if given["out"] is not None and os.path.exists(given["out"]) and not os.path.isdir(given["out"]):
        raise ConfigError(f"--out {given['out']} is no folder")
    from fedact.cli.compare import run_compare

    return run_compare(given["runs"], given["out"], target, given["replication"])


def read_share(flag: str, text: str) -> float:
    """Return a share that is written as 0.9 or 90%; raises ConfigError for what is none."""
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise ConfigError(f"{flag} is a share such as 0.9 or 90%, not {text!r}")
    return share


if __name__ == "__main__":
    sys.exit(run_process(main))
