"""What a data set is asked for."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True, eq=False)
class Request:
    """path: --data-dir; the sizes matter only where examples are made to order; generator: for what is random."""

    path: Path
    max_examples: int | None
    max_test_examples: int | None
    generator: np.random.Generator
