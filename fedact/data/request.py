"""What a data set is asked for."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True, eq=False)
class Request:
    """What a run wants of a data set.

    path: --data-dir; the sizes matter only where examples are made to order; generator: for what is random; side: pixels of
    a decoded picture, where the data set is one of files.
    """

    path: Path
    max_examples: int | None
    max_test_examples: int | None
    generator: np.random.Generator
    side: int = 64
