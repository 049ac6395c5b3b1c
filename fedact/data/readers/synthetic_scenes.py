"""Small scenes made to order: coloured shapes on a textured ground, in several lights, void along the borders of some."""

import numpy as np

from fedact.config.errors import ConfigError
from fedact.data.examples import Examples, Request, Source
from fedact.data.masks import VOID, count_ids, most_frequent_class

NAMES = ("ground", "disc", "box", "diamond", "cushion")
COLOURS = np.array([[110, 110, 100], [190, 90, 80], [80, 170, 90], [80, 100, 190], [190, 180, 90]], float)
ROUNDNESS = (0, 2, 20, 1, 4)
"""The exponent p of a shape |x|^p + |y|^p <= r^p."""
AREAS = (0, 3.14, 3.9, 2, 3.7)
"""Of the shapes with r = 1, about."""
SOURCES = 4
DEFAULT_EXAMPLES = 400
DEFAULT_TEST_EXAMPLES = 100
NOISE = 12.0
TEXTURE = 15.0
MOST_BYTES = 15_000_000_000


def load(request: Request) -> Source:
    """Return as many scenes of side x side pixels as were asked for; raises ConfigError for too many.

    By default 400 and 100, or as many as a large fleet needs. What the server keeps does not grow.
    """
    counts = (
        request.max_examples or max(DEFAULT_EXAMPLES, request.needed),
        request.max_test_examples or DEFAULT_TEST_EXAMPLES,
    )
    if (needed := sum(counts) * 4 * request.side**2) > MOST_BYTES:
        raise ConfigError(
            f"--dataset synthetic: {sum(counts):,} scenes of {request.side} pixels a side would take {needed:,} bytes, and "
            f"at most {MOST_BYTES:,} are made"
        )
    lights = request.generator.uniform(0.75, 1.25, (SOURCES, 3))
    waves = request.generator.uniform(-30, 30, (SOURCES, 2))
    train, test = (_examples(count, lights, waves, request) for count in counts)
    return Source(train, test, len(NAMES), NAMES, None if request.max_examples else DEFAULT_EXAMPLES // 2)


def _examples(count: int, lights: np.ndarray, waves: np.ndarray, request: Request) -> Examples:
    side, generator = request.side, request.generator
    images, masks = np.empty((count, side, side, 3), np.uint8), np.empty((count, side, side), np.uint8)
    sources = generator.permutation(np.arange(count) % SOURCES)
    for row, (source, chief) in enumerate(zip(sources, generator.permutation(np.arange(count) % len(NAMES)), strict=True)):
        classes = _classes(int(chief), side, generator)
        images[row] = _picture(classes, lights[source], waves[source], generator)
        masks[row] = _with_void_borders(classes) if generator.random() < 0.5 else classes
    pixels = np.stack([count_ids(mask) for mask in masks])[:, : len(NAMES)].astype(np.int64)
    return Examples(images, sources if request.partition_by == "source" else most_frequent_class(pixels), masks, pixels)


def _classes(chief: int, side: int, generator: np.random.Generator) -> np.ndarray:
    """Return uint8 (side, side): a large shape of one class, none for the ground, and up to three small ones over it."""
    classes = np.zeros((side, side), np.uint8)
    small = generator.integers(1, len(NAMES), generator.integers(1, 4))
    areas = generator.uniform(0.02, 0.06, len(small))
    shapes = [(chief, generator.uniform(0.55, 0.7), 0.1)] if chief else []
    for shape, area, spread in [*shapes, *((int(shape), area, 0.4) for shape, area in zip(small, areas, strict=True))]:
        centre = generator.uniform(0.5 - spread, 0.5 + spread, 2)
        classes[_inside(shape, area, centre, side)] = shape
    return classes


def _inside(shape: int, area: float, centre: np.ndarray, side: int) -> np.ndarray:
    """Return where in a square a shape lies; its area is a share of the square's."""
    places = (np.arange(side) + 0.5) / side
    down, across = (np.abs(places - middle) / np.sqrt(area / AREAS[shape]) for middle in centre)
    power = ROUNDNESS[shape]
    inside: np.ndarray = down[:, None] ** power + across[None, :] ** power <= 1
    return inside


def _picture(classes: np.ndarray, light: np.ndarray, wave: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return (side, side, 3) from 0 to 255: the classes' colours in a light, under waves and noise."""
    side = len(classes)
    places = np.arange(side) / side
    texture = TEXTURE * np.sin(wave[0] * places[:, None] + wave[1] * places[None, :])
    noise = generator.normal(0, NOISE, (side, side, 3))
    pixels: np.ndarray = COLOURS[classes] * light + texture[..., None] + noise
    return pixels.clip(0, 255)


def _with_void_borders(classes: np.ndarray) -> np.ndarray:
    """Return the classes with VOID along their borders, two pixels wide."""
    marked = classes.copy()
    down, across = np.nonzero(classes[1:] != classes[:-1]), np.nonzero(classes[:, 1:] != classes[:, :-1])
    for step in (0, 1):
        marked[down[0] + step, down[1]] = VOID
        marked[across[0], across[1] + step] = VOID
    return marked
