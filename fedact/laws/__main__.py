"""python -m fedact.laws: which laws a method of your own obeys, and the smallest input that breaks the others."""

import sys

from fedact.cli.flags import HELP, Parser, check_file, command, user_path
from fedact.cli.process import run_process
from fedact.config.errors import ConfigError, check_extra

EXAMPLES = 100


def parser() -> Parser:
    """Return the command line: the method, and how it is checked."""
    result = Parser("laws", __doc__ or "")
    result.add_argument("name", nargs="?", metavar="METHOD", help="FILE.py:NAME, or a name, with [:key=value,...]")
    result.add_argument("--law", action="append", metavar="NAME", help="check this law alone; repeat for several [all]")
    result.add_argument("--examples", type=int, default=EXAMPLES, metavar="N", help=f"most cases of a law [{EXAMPLES}]")
    result.add_argument("--seed", type=int, metavar="N", help="draw other cases [the same each time]")
    result.add_argument("--list", action="store_true", help="print the laws, and check nothing")
    result.add_argument("--json", type=user_path, metavar="FILE", help="write what was found to a JSON file")
    result.add_argument("-h", "--help", action="help", help=HELP)
    return result


@command
def main(arguments: list[str]) -> int:
    """Run the command line and return its exit code: 0 where all laws hold, 1 where some do not."""
    given = parser().settings(arguments)
    if given["examples"] < 1:
        raise ConfigError(f"--examples is a whole number from 1, not {given['examples']}")
    if given["seed"] is not None and given["seed"] < 0:
        raise ConfigError(f"--seed is a whole number from 0, not {given['seed']}")
    if given["name"] is None and not given["list"]:
        raise ConfigError("which method? python -m fedact.laws FILE.py:NAME, or --list for the laws")
    check_file("json", given["json"])
    check_extra("laws", "python -m fedact.laws")
    from fedact.laws.terminal import check_laws, show_laws

    if given["list"]:
        return show_laws()
    return check_laws(given["name"], given["law"], given["examples"], given["seed"], given["json"])


if __name__ == "__main__":
    sys.exit(run_process(main))
