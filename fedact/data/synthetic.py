"""CIFAR-shaped images made to order: a smooth pattern a class, shifted, scaled and drowned in noise."""

import numpy as np

from fedact.data.examples import Examples, Source
from fedact.data.request import Request
from fedact.errors import ConfigError

CLASSES = 10
SIDE = 32
COARSE = 4
DEFAULT_EXAMPLES = 2000
DEFAULT_TEST_EXAMPLES = 500
NOISE = 40.0
MOST_EXAMPLES = 5_000_000
"""15 GB."""


def load(request: Request) -> Source:
    """Return as many examples as were asked for (2,000 and 500 by default); raises ConfigError for too many."""
    count = (request.max_examples or DEFAULT_EXAMPLES) + (request.max_test_examples or DEFAULT_TEST_EXAMPLES)
    if count > MOST_EXAMPLES:
        raise ConfigError(f"--dataset synthetic: {count:,} examples were asked for, and at most {MOST_EXAMPLES:,} are made")
    prototypes = request.generator.normal(size=(CLASSES, COARSE, COARSE, 3))
    train = _examples(prototypes, request.max_examples or DEFAULT_EXAMPLES, request.generator)
    test = _examples(prototypes, request.max_test_examples or DEFAULT_TEST_EXAMPLES, request.generator)
    return Source(train, test, CLASSES)


def _examples(prototypes: np.ndarray, count: int, generator: np.random.Generator) -> Examples:
    labels = generator.permutation(np.arange(count) % CLASSES)
    patterns = np.kron(prototypes, np.ones((1, SIDE // COARSE, SIDE // COARSE, 1)))
    images = np.empty((count, SIDE, SIDE, 3), dtype=np.uint8)
    for position, label in enumerate(labels):
        shift = generator.integers(-COARSE, COARSE + 1, size=2)
        pattern = np.roll(patterns[label], tuple(shift), axis=(0, 1)) * generator.uniform(20, 60)
        images[position] = np.clip(128 + pattern + generator.normal(0, NOISE, size=pattern.shape), 0, 255)
    return Examples(images, labels.astype(np.int64))
