"""What is known of a method whatever its settings: for the planner, the figures, the command line and the laws."""

from dataclasses import dataclass
from typing import NamedTuple


class Sweep(NamedTuple):
    """The setting that trades bytes for error, with values worth drawing, fewest bytes first; between floats any goes."""

    setting: str = ""
    values: tuple[float, ...] = ()


@dataclass(frozen=True)
class Traits:
    """What planner, figures and command line want to know of a method, whatever its settings.

    source: the paper. published: the settings of its headline figures (for every decomposition the explained variance of
    HOSVD's). sweep: see there. variants: other settings that make a curve of their own.
    saves_less: the layers around it drop what an exact gradient does not need (batch norm's input, ReLU's copies).
    keeps_input: it stores the very input, so that the activation before can read its mask off it.
    exact_input_gradient: its input gradient is the plain layer's.
    reads_state: ``reconstruct`` needs the state too. calibrated: the server finds the state once and sends it to every
    client. per_example: examples are stored independently, so that the gradient's error is much the same in any micro-batch.
    fixed_workspace: where stored bytes depend on shapes alone, a step's working memory does too. worst_case_count: how many
    ``worst_cases`` there are. tensor_seconds, element_seconds: about how long compressing and reconstructing take, for a
    tensor and for each of its elements, on two cores; they decide between plans of equal error. gentlest: the settings that
    lose nothing but rounding, "" the default ones, None where there are none; rounding: how far off they may be, relatively.
    """

    source: str
    published: str = ""
    sweep: Sweep = Sweep()
    variants: tuple[str, ...] = ("",)
    saves_less: bool = True
    keeps_input: bool = False
    exact_input_gradient: bool = True
    reads_state: bool = False
    calibrated: bool = False
    per_example: bool = False
    fixed_workspace: bool = True
    worst_case_count: int = 0
    tensor_seconds: float = 2e-3
    element_seconds: float = 2e-8
    gentlest: str | None = None
    rounding: float = 1e-5
