"""Readings of an accelerometer and a gyroscope, made to order: six activities of people who each move in their own way."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fedact.config.errors import ConfigError
from fedact.data.examples import Examples, Request, Source
from fedact.data.partition.base import even_sizes
from fedact.data.partition.size_skew import sizes_at_least

STEPS, RATE = 128, 50.0
"""Readings of a window, and of a second."""
SENSORS, AXES, HARMONICS = 2, 3, 3
"""Accelerometer and gyroscope; forward, sideways and up."""
GRAVITY = 9.81
DEFAULT_EXAMPLES, DEFAULT_TEST_EXAMPLES = 2400, 600
OF_ONE, OF_ONE_TESTED = 80, 60
"""A person's windows, in the mean."""
FEWEST_PEOPLE, FEWEST_OF_ONE = 10, 20
MOST_EXAMPLES = 2_000_000
"""6 GB."""


class Activity(NamedTuple):
    """What moves, and how much: m/s^2 and rad/s by axis, each for the first, second and third harmonic.

    cadence: steps or turns a second.
    """

    name: str
    cadence: float
    acceleration: tuple[tuple[float, float, float], ...]
    rotation: tuple[tuple[float, float, float], ...]


ACTIVITIES = (
    Activity(
        "walking", 1.8,
        ((1.2, 0.7, 0.3), (0.8, 0.2, 0.3), (2.0, 0.9, 0.3)), ((0.5, 0.2, 0.1), (0.9, 0.3, 0.1), (0.5, 0.2, 0.1)),
    ),
    Activity(
        "climbing stairs", 1.5,
        ((0.8, 0.8, 0.2), (0.9, 0.3, 0.2), (1.6, 1.1, 0.4)), ((0.6, 0.2, 0.1), (1.2, 0.4, 0.2), (0.4, 0.2, 0.1)),
    ),
    Activity(
        "descending stairs", 1.9,
        ((1.1, 0.6, 0.5), (0.9, 0.3, 0.4), (2.4, 1.0, 0.9)), ((0.6, 0.3, 0.2), (0.8, 0.3, 0.3), (0.5, 0.3, 0.1)),
    ),
    Activity(
        "running", 2.5,
        ((2.2, 1.0, 0.4), (1.4, 0.4, 0.3), (4.5, 1.5, 0.5)), ((0.9, 0.3, 0.2), (1.6, 0.5, 0.2), (0.8, 0.3, 0.2)),
    ),
    Activity(
        "cycling", 1.3,
        ((0.7, 0.2, 0.1), (0.4, 0.2, 0.1), (0.8, 0.3, 0.2)), ((0.4, 0.1, 0.1), (1.6, 0.3, 0.1), (0.4, 0.1, 0.1)),
    ),
    Activity(
        "standing", 0.4,
        ((0.2, 0.1, 0.1), (0.2, 0.1, 0.1), (0.1, 0.1, 0.1)), ((0.1, 0.1, 0.0), (0.1, 0.1, 0.0), (0.1, 0.0, 0.0)),
    ),
)  # fmt: skip
"""The classes: cadences are people's usual ones, amplitudes such as phones in a pocket read."""
CLASSES = len(ACTIVITIES)
CADENCES = np.array([activity.cadence for activity in ACTIVITIES])
AMPLITUDES = np.array([[activity.acceleration, activity.rotation] for activity in ACTIVITIES])
"""(classes, sensors, axes, harmonics)."""
PACE, VIGOUR, STYLE, TIMING, TILT = 0.18, 0.3, 0.4, 0.7, 1.0
"""How people differ: deviations of log cadence, log amplitude, that of each harmonic, its phase; the largest tilt (rad)."""
WINDOW_PACE, WINDOW_VIGOUR, WINDOW_TILT = 0.06, 0.2, 0.15
"""How the windows of one person differ, likewise."""
NOISE, GYROSCOPE_NOISE = (0.6, 1.5), 0.3
"""The least and the largest deviation of a person's accelerometer (m/s^2), and the gyroscope's share of it."""
PREFERENCE = 1.5
"""The concentration of the Dirichlet distribution from which comes how often a person does what."""


@dataclass(frozen=True, eq=False)
class Person:
    """How one person moves, and how the sensors lie.

    pace, vigour: factors of cadence and amplitude. style, phases: of each harmonic (classes, sensors, axes, harmonics).
    tilt: the rotation of the sensors (axes, axes). noise: their deviation, m/s^2.
    """

    pace: float
    vigour: float
    style: np.ndarray
    phases: np.ndarray
    tilt: np.ndarray
    noise: float


def load(request: Request) -> Source:
    """Return as many windows as were asked for, float32 (examples, 6, 128); raises ConfigError for too many.

    By default 2,400 of 30 people, and to test on 600 of 10 others; for a large fleet twice as many as it needs. More windows
    are of more people. What the server keeps does not grow.
    """
    count = request.max_examples or max(DEFAULT_EXAMPLES, 2 * request.needed)
    tested = request.max_test_examples or DEFAULT_TEST_EXAMPLES
    if count + tested > MOST_EXAMPLES:
        raise ConfigError(
            f"--dataset motion: {count + tested:,} examples are what --max-examples or --clients ask for, and at most "
            f"{MOST_EXAMPLES:,} are made: name fewer"
        )
    random = request.generator
    phases = random.uniform(0, 2 * np.pi, AMPLITUDES.shape)
    people, others = min(count, max(FEWEST_PEOPLE, count // OF_ONE)), max(1, tested // OF_ONE_TESTED)
    windows = sizes_at_least(min(FEWEST_OF_ONE, count // people), np.exp(random.normal(0, 0.3, people)), count)
    preferences = random.dirichlet(np.full(CLASSES, PREFERENCE), people)
    labels = [random.choice(CLASSES, size, p=often) for size, often in zip(windows, preferences, strict=True)]
    test_labels = np.split(random.permutation(np.arange(tested) % CLASSES), np.cumsum(even_sizes(tested, others))[:-1])
    train, test = _examples(labels, 0, phases, random), _examples(test_labels, people, phases, random)
    names = tuple(activity.name for activity in ACTIVITIES)
    kept = None if request.max_examples else DEFAULT_EXAMPLES // 2
    return Source(train, test, CLASSES, names, kept, tuple(f"person {number}" for number in range(people + others)))


def _examples(labels: list[np.ndarray], first: int, phases: np.ndarray, random: np.random.Generator) -> Examples:
    """Return windows of new people, for the labels of each; first: the number of the first of them."""
    windows = [_windows(_person(phases, random), own, random) for own in labels]
    owners = np.repeat(first + np.arange(len(labels)), [len(own) for own in labels])
    return Examples(np.concatenate(windows), np.concatenate(labels).astype(np.int64), clients=owners)


def _person(phases: np.ndarray, random: np.random.Generator) -> Person:
    return Person(
        float(np.exp(random.normal(0, PACE))),
        float(np.exp(random.normal(0, VIGOUR))),
        np.exp(random.normal(0, STYLE, phases.shape)),
        phases + random.normal(0, TIMING, phases.shape),
        _rotations(1, TILT, random)[0],
        random.uniform(*NOISE),
    )


def _windows(person: Person, labels: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return a window for each label, float32 (labels, 6, 128)."""
    count = len(labels)
    cadence = CADENCES[labels] * person.pace * np.exp(random.normal(0, WINDOW_PACE, count))
    start, vigour = random.uniform(0, 2 * np.pi, count), person.vigour * np.exp(random.normal(0, WINDOW_VIGOUR, count))
    turns = 2 * np.pi * cadence[:, None] * np.arange(STEPS) / RATE + start[:, None]
    amplitudes = (AMPLITUDES * person.style)[labels] * vigour[:, None, None, None]
    moved = np.zeros((count, SENSORS, AXES, STEPS))
    for harmonic in range(HARMONICS):
        waves = np.sin((harmonic + 1) * turns[:, None, None] + person.phases[labels][..., harmonic, None])
        moved += amplitudes[..., harmonic, None] * waves
    moved[:, 0, AXES - 1] += GRAVITY
    read = (person.tilt @ _rotations(count, WINDOW_TILT, random))[:, None] @ moved
    noise = random.normal(size=read.shape) * person.noise
    noise[:, 1] *= GYROSCOPE_NOISE
    windows: np.ndarray = (read + noise).reshape(count, SENSORS * AXES, STEPS).astype(np.float32)
    return windows


def _rotations(count: int, most: float, random: np.random.Generator) -> np.ndarray:
    """Return rotations by at most an angle, in radians, about any axis: (count, 3, 3), by Rodrigues' formula."""
    axes = random.normal(size=(count, AXES))
    x, y, z = (axes / np.linalg.norm(axes, axis=1, keepdims=True)).T
    nothing, angles = np.zeros(count), random.uniform(-most, most, count)[:, None, None]
    cross = np.stack([nothing, -z, y, z, nothing, -x, -y, x, nothing], axis=1).reshape(count, 3, 3)
    rotations: np.ndarray = np.eye(3) + np.sin(angles) * cross + (1 - np.cos(angles)) * (cross @ cross)
    return rotations
