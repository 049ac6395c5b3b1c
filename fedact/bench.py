"""python -m fedact.bench: what each method holds, and how close its gradient is, on one model and a few batches."""

import sys
from pathlib import Path
from typing import Any

from fedact.config import make_config
from fedact.errors import ConfigError
from fedact.flags import Parser, through

FIELDS = (
    "model", "width", "weights", "dataset", "data_dir", "max_examples", "resolution", "batch_size", "layers", "train_norm",
    "method", "seed", "device",
)  # fmt: skip
LAYERS, BATCHES = 4, 2


def parser() -> Parser:
    """Return the command line: the fields of Config that say what is measured, on how many batches, and where to."""
    result = Parser("bench", __doc__ or "")
    result.add_fields(FIELDS)
    result.add_argument("--batches", type=int, default=BATCHES, metavar="N", help=f"batches to measure on [{BATCHES}]")
    result.add_argument("--json", type=Path, metavar="FILE", help="write every figure, layer by layer, into a file")
    return result


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return through(_main, arguments)


def _main(arguments: list[str]) -> int:
    settings: dict[str, Any] = {"layers": LAYERS, **parser().settings(arguments)}
    batches, file = settings.pop("batches"), settings.pop("json")
    if batches < 1:
        raise ConfigError(f"--batches is a whole number from 1, not {batches}")
    if file and not file.absolute().parent.is_dir():
        raise ConfigError(f"--json {file}: there is no folder {file.absolute().parent}")
    config = make_config(settings)
    if config.layers == "auto":
        raise ConfigError("--layers is a whole number here, not auto")
    methods = list(config.method) if "method" in settings else None
    from fedact.comparison import run_bench

    return run_bench(config, methods, batches, file)


if __name__ == "__main__":
    sys.exit(main())
