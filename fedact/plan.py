"""python -m fedact.plan: what fits into a memory budget, layer by layer, and what it costs."""

import sys

from fedact.cli.flags import Parser, check_file, command
from fedact.cli.process import run_process
from fedact.config.loading import make_config
from fedact.config.own_code import with_code
from fedact.config.settings.data import USUAL_CALIBRATION

METHOD = "auto"
FIRST_FIELDS = ("model", "budget", "method", "batch_size", "resolution")
FIELDS = (
    "task", "model", "pretrain_from", "pretrain_epochs", "head_epochs", "dataset", "data_dir", "max_examples", "void",
    "resolution", "crop", "batch_size", "devices", "budget", "scope", "layers", "update", "recompute", "max_slowdown",
    "train_norm", "seed", "device",
)  # fmt: skip
OTHER_DEFAULTS = {
    "width": "width multiplier [1]",
    "weights": "none, pretrain (on the data set, at 64 px at most, once), imagenet or a file [pretrain]",
    "method": f"NAME[:key=value,...]; repeat to compare [{METHOD}]",
    "calibration": "the server's examples for planning [64, or a batch where that is larger]",
}
"""Fields of Config whose default is another one here, with their help."""
FILES = {
    "json": "write the plans to a JSON file",
    "figure": "draw plans at other budgets, with exact gradients beside them, to a PNG file",
}


def parser() -> Parser:
    """Return the command line: the fields of Config that a plan depends on, and where to write."""
    result = Parser("plan", __doc__ or "")
    result.add_fields((*FIELDS, *OTHER_DEFAULTS), FIRST_FIELDS, OTHER_DEFAULTS)
    result.add_files(FILES)
    return result


@command
def main(arguments: list[str]) -> int:
    """Run the command line and return its exit code."""
    given = parser().settings(arguments)
    options = {name: given.pop(name) for name in FILES}
    check_file("json", options["json"])
    check_file("figure", options["figure"], ".png")
    config = with_code(make_config({"method": [METHOD], **given}))
    if "calibration" not in given:
        usual = USUAL_CALIBRATION if config.calibration == "auto" else config.calibration
        config = config.model_copy(update={"calibration": max(usual, config.batch_size)})
    from fedact.cli.plan import Options, show_plans

    return show_plans(config, Options(**options))


if __name__ == "__main__":
    sys.exit(run_process(main))
