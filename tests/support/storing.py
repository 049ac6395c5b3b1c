"""Networks whose layers store inputs in every way that methods know, each with what of it is trained."""

from torch import nn

from tests.support import planned
from tests.support.planner_networks import NETWORKS


def residual() -> tuple[nn.Module, dict]:
    return planned.net(), {"layers": 3}


def smooth() -> tuple[nn.Module, dict]:
    return NETWORKS["smooth"][0](), {"layers": 2}


def normed() -> tuple[nn.Module, dict]:
    return NETWORKS["depthwise"][0](), {"layers": 3, "train_norm": True}
