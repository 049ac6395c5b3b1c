"""CIFAR-shaped images made to order: a smooth pattern a class, shifted, scaled and drowned in noise."""

import numpy as np

from fedact.config.errors import ConfigError
from fedact.data.examples import Examples, Request, Source

CLASSES = 10
SIDE = 32
COARSE = 4
DEFAULT_EXAMPLES = 2000
DEFAULT_TEST_EXAMPLES = 500
NOISE = 40.0
MOST_EXAMPLES = 5_000_000
"""15 GB."""
BLOCK = 64
"""Images made at once: few enough to stay in a processor's cache."""


def load(request: Request) -> Source:
    """Return as many examples as were asked for; raises ConfigError for too many.

    By default 2,000 and 500; for a large fleet twice as many as it needs, so that there is something to deal unevenly. What
    the server keeps does not grow.
    """
    most = request.max_examples or max(DEFAULT_EXAMPLES, 2 * request.needed)
    count = most + (request.max_test_examples or DEFAULT_TEST_EXAMPLES)
    if count > MOST_EXAMPLES:
        raise ConfigError(
            f"--dataset synthetic: {count:,} examples are what --max-examples or --clients ask for, and at most "
            f"{MOST_EXAMPLES:,} are made: name fewer"
        )
    prototypes = request.generator.normal(size=(CLASSES, COARSE, COARSE, 3))
    train = _examples(prototypes, most, request.generator)
    test = _examples(prototypes, request.max_test_examples or DEFAULT_TEST_EXAMPLES, request.generator)
    return Source(train, test, CLASSES, server_examples=None if request.max_examples else DEFAULT_EXAMPLES // 2)


def _examples(prototypes: np.ndarray, count: int, generator: np.random.Generator) -> Examples:
    labels = generator.permutation(np.arange(count) % CLASSES)
    patterns = np.kron(prototypes, np.ones((1, SIDE // COARSE, SIDE // COARSE, 1)))
    # A shifted pattern is a window of the repeated one.
    repeated = np.tile(patterns, (1, 2, 2, 1))
    images = np.empty((count, SIDE, SIDE, 3), dtype=np.uint8)
    for start in range(0, count, BLOCK):
        images[start : start + BLOCK] = _block(repeated, labels[start : start + BLOCK], generator)
    return Examples(images, labels.astype(np.int64))


def _block(repeated: np.ndarray, labels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return an image for each label, as float64 (images, height, width, 3) from 0 to 255."""
    block, noise = np.empty((2, len(labels), SIDE, SIDE, 3))
    for position, label in enumerate(labels):
        down, right = generator.integers(-COARSE, COARSE + 1, size=2) % SIDE
        window = repeated[label, SIDE - down : 2 * SIDE - down, SIDE - right : 2 * SIDE - right]
        np.multiply(window, generator.uniform(20, 60), out=block[position])
        generator.standard_normal(out=noise[position])
    block += 128
    noise *= NOISE
    block += noise
    return np.clip(block, 0, 255, out=block)
