"""python -m fedact.bench: what each method holds, costs and changes in the gradient, on one model and a few batches."""

import sys
from argparse import SUPPRESS
from typing import Any

from fedact.cli.flags import Parser, check_file, command
from fedact.cli.process import run_process
from fedact.config.errors import ConfigError, as_flag
from fedact.config.loading import make_config
from fedact.config.own_code import with_code
from fedact.config.sizes import parse_bytes
from fedact.config.updates import WHOLE

FIELDS = (
    "task", "model", "width", "weights", "pretrain_from", "pretrain_epochs", "head_epochs", "dataset", "data_dir",
    "max_examples", "void", "resolution", "batch_size", "update", "train_norm", "seed", "device",
    "threads",
)  # fmt: skip
FLEET = ("clients", "partition", "local_epochs", "budget", "cache_size", "workers")
"""Fields of Config about the fleet of ``--rounds``."""
FLEET_HELPS = {"workers": "processes that play the clients [1]"}
FIRST_FIELDS = ("model", "method", "layers", "batch_size", "resolution")
LAYERS, LAYERS_ALONE = 4, 6
HELPS = {
    "method": "NAME[:key=value,...]; repeat to compare [every method, with the settings that simulate --list says]",
    "recompute": "how many convolutions back a saved input may be, for others to be made again from it instead of saved [0; "
    "exact is measured with 3 as well]",
    "layers": f"trained convolutions from the end; 0 is the head alone [{LAYERS}; with --equal-cosine {LAYERS_ALONE}]",
}
"""Fields of Config whose default is another one here, with their help."""
COUNTS = {
    "batches": (2, 1, "batches to measure bytes and gradients on"),
    "steps": (7, 0, "batches to time; 0 times none"),
    "draws": (8, 2, "gradients of a batch, for random methods"),
    "every": (10, 0, "with --equal-cosine: every N-th convolution before the last ones too; 0 adds none"),
}
"""Whole numbers: default, least and help."""
MICRO_BATCH_HELP = "split batches into micro-batches of N; time is then the whole step's, relative to vanilla in one piece"
ROOM_HELP = "also measure the methods in streams, with so many bytes (such as 300KB) for the wide maps of a block"
ROUNDS_HELP = (
    "instead: time N rounds of --clients beside plain PyTorch with the same updates, with the prefix cache and without"
)
STEADY = {"workers": 1, "evaluate_every": 10**6, "replan": "never", "max_test_examples": 100}
"""Settings of a fleet whose rounds are timed: training alone."""
FILES = {
    "json": "write all results, layer by layer, to a JSON file",
    "figure": "draw gradient error against bytes to a PNG file",
}
OF_WHOLE_LAYERS = ("room", "recompute", "equal_cosine", "rounds")
"""Flags that know no other update than that of whole layers."""
MODES = {
    "sweep": "every method, or those of --method, at several settings each",
    "equal_cosine": "instead: the least bytes for a given gradient cosine, one convolution at a time, on one batch",
}


def parser() -> Parser:
    """Return the command line: fields of Config, counts, modes and output files."""
    result = Parser("bench", __doc__ or "")
    result.add_fields((*FIELDS, *HELPS), FIRST_FIELDS, HELPS)
    measuring, rounds = result.group("measuring"), result.group("rounds of a fleet")
    for name, (default, _, says) in COUNTS.items():
        measuring.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"{says} [{default}]")
    measuring.add_argument("--micro-batch", type=int, metavar="N", help=MICRO_BATCH_HELP)
    measuring.add_argument("--room", metavar="BYTES", help=ROOM_HELP)
    rounds.add_argument("--rounds", type=int, default=SUPPRESS, metavar="N", help=ROUNDS_HELP)
    for name, says in MODES.items():
        measuring.add_argument(as_flag(name), action="store_true", help=says)
    for name in FLEET:
        result.add_field(name, "rounds of a fleet", FLEET_HELPS.get(name))
    result.add_files(FILES)
    return result


@command
def main(arguments: list[str]) -> int:
    """Run the command line and return its exit code."""
    given = parser().settings(arguments)
    options = {name: given.pop(name) for name in (*COUNTS, "micro_batch", "room", *FILES, *MODES)}
    rounds = given.pop("rounds", None)
    _check(options)
    if rounds is None:
        for name in (name for name in FLEET if name in given):
            raise ConfigError(f"{as_flag(name)} is of the fleet whose rounds --rounds N times: give that too")
    elif rounds < 1:
        raise ConfigError(f"--rounds is a whole number from 1, not {rounds}")
    steady = {} if rounds is None else {**STEADY, **given, "rounds": rounds + 1}
    config = with_code(make_config({"layers": LAYERS_ALONE if options["equal_cosine"] else LAYERS, **given, **steady}))
    if config.layers == "auto":
        raise ConfigError("--layers is a whole number here, not auto")
    if config.update != WHOLE:
        for flag in (name for name in OF_WHOLE_LAYERS if {**given, **options, "rounds": rounds}.get(name)):
            raise ConfigError(f"{as_flag(flag)} is for --update {WHOLE}, not for --update {config.update}")
    methods = list(config.method) if "method" in given else None
    if rounds is not None:
        from fedact.cli.bench_rounds import run_round_bench

        return run_round_bench(config, methods or ["exact"], options["json"])
    from fedact.cli.bench import Options, run_bench, run_equal_cosine

    run = run_equal_cosine if options["equal_cosine"] else run_bench
    return run(config, methods, Options(**options))


def _check(options: dict[str, Any]) -> None:
    """Read the room; raise ConfigError for a number that is too small, a file not to be written, or flags that clash."""
    for name, (_, least, _) in COUNTS.items():
        if options[name] < least:
            raise ConfigError(f"--{name} is a whole number from {least}, not {options[name]}")
    if options["micro_batch"] is not None and options["micro_batch"] < 1:
        raise ConfigError(f"--micro-batch is a whole number from 1, not {options['micro_batch']}")
    options["room"] = None if options["room"] is None else parse_bytes(options["room"])
    check_file("json", options["json"])
    check_file("figure", options["figure"], ".png")
    for other in ("sweep", "figure", "micro_batch", "room"):
        if options["equal_cosine"] and options[other]:
            flag = other.replace("_", "-")
            raise ConfigError(f"--equal-cosine has its own settings and no figure: leave --{flag} out")


if __name__ == "__main__":
    sys.exit(run_process(main))
