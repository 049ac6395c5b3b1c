"""Where a run is written that names no folder."""

import re
import time
from pathlib import Path

from fedact.config.code import code_label
from fedact.config.hub import hub_label
from fedact.config.schema import Config


def default_folder(config: Config) -> Path:
    """Return runs/<time>-<dataset>-<model>."""
    what = f"{code_label(hub_label(config.dataset))}-{config.model_name}".replace(".py:", "-")
    word = re.sub(r"[^\w.-]+", "-", what)
    return Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{word}"
