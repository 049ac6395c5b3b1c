"""A small network, with a file that it imports, and a small data set of the user's own, as files."""

from pathlib import Path

NETWORK = """
from mylayers import norm
from torch import nn

def build(classes):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, 12, 3, padding=1), norm(12), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(48, classes),
    )
"""
LAYERS = """
from torch import nn

def norm(channels):
    return nn.BatchNorm2d(channels)
"""
DATA = """
import numpy as np

def load():
    random = np.random.default_rng(0)
    labels = random.integers(0, 4, 120)
    noise = random.normal(80, 25, (120, 12, 12, 3))
    pictures = (noise + 30 * labels[:, None, None, None]).clip(0, 255).astype(np.uint8)
    return (pictures[:80], labels[:80]), (pictures[80:], labels[80:])
"""
FLEET = {
    "resolution": 12, "weights": "none", "clients": 3, "rounds": 2, "batch_size": 8, "calibration": 16, "local_epochs": 1,
    "layers": 1, "lr": 0.1, "budget": "200KB", "method": ["exact", "hosvd"],
}  # fmt: skip
"""Settings that fit both."""


def own_files(folder: Path) -> tuple[str, str]:
    """Write both files, and what the network imports, and return the names of network and data."""
    (folder / "mylayers.py").write_text(LAYERS)
    (folder / "mynet.py").write_text(NETWORK)
    (folder / "mydata.py").write_text(DATA)
    return f"{folder}/mynet.py:build", f"{folder}/mydata.py:load"


def flags(settings: dict) -> list[str]:
    """Return settings as a command line has them."""
    pairs = [(key, each) for key, value in settings.items() for each in (value if isinstance(value, list) else [value])]
    return [word for key, value in pairs for word in (f"--{key.replace('_', '-')}", str(value))]
