"""What a data set is asked for."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fedact.config.schema import cache_folder


@dataclass(frozen=True, eq=False)
class Request:
    """What a run wants of a data set.

    path: --data-dir; the sizes matter only where examples are made to order; generator: for what is random; side: pixels of
    a decoded picture, where the data set is one of files; of a scene's shorter side. The others are for masks: void: the id
    that counts for nothing where a data set does not say itself; partition_by: "class" or "source", what the labels are;
    cache: where decoded files are kept.
    """

    path: Path
    max_examples: int | None
    max_test_examples: int | None
    generator: np.random.Generator
    side: int = 64
    void: int = 255
    partition_by: str = "class"
    cache: Path = field(default_factory=lambda: cache_folder() / "decoded")
