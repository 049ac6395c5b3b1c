"""scikit-learn's handwritten digits: 1,797 real 8 x 8 images that ship with a package."""

import gzip
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from fedact.config.errors import ConfigError
from fedact.data.examples import Examples, Request, Source
from fedact.data.partition import stratified

TEST_SHARE = 0.25
LARGEST_GRAY = 16
PIXELS = 64


def load(request: Request) -> Source:
    """Return the digits as uint8 RGB, a quarter of them for testing, stratified."""
    # Importing scikit-learn takes three seconds; its data file is all that is needed.
    spec = find_spec("sklearn")
    file = Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz" if spec and spec.origin else None
    if file is None or not file.exists():
        raise ConfigError("the digits ship with scikit-learn, which is not installed: pip install scikit-learn")
    with gzip.open(file, "rt", encoding="ascii") as lines:
        table = np.loadtxt(lines, delimiter=",")
    gray = np.round(table[:, :PIXELS] * (255 / LARGEST_GRAY)).astype(np.uint8).reshape(-1, 8, 8, 1)
    everything = Examples(np.repeat(gray, 3, axis=3), table[:, PIXELS].astype(np.int64))
    test = stratified(everything.labels, round(TEST_SHARE * len(everything)), request.generator)
    train = np.setdiff1d(np.arange(len(everything)), test)
    return Source(everything.take(train), everything.take(test), classes=10, names=tuple("0123456789"))
