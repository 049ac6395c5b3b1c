"""On what a model can be trained."""

from collections.abc import Callable

from fedact.data import cifar, digits, npz, synthetic
from fedact.data.examples import Examples, Loader, Preprocessing, Rows, Source, in_blocks
from fedact.data.request import Request

DATASETS: dict[str, Callable[[Request], Source]] = {
    "digits": digits.load,
    "synthetic": synthetic.load,
    "npz": npz.load,
    "cifar10": cifar.cifar10,
    "cifar100": cifar.cifar100,
}
"""The one table of data sets."""

__all__ = ["DATASETS", "Examples", "Loader", "Preprocessing", "Request", "Rows", "Source", "in_blocks"]
