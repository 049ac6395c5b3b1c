"""On what a model can be trained."""

from collections.abc import Callable

from fedact.data.augmentation import Augmented, augmented, center_crop
from fedact.data.decoded_cache import decode_files
from fedact.data.examples import Examples, Images, Loader, Preprocessing, Request, Rows, Source
from fedact.data.kinds import in_blocks
from fedact.data.masks import VOID
from fedact.data.readers import (
    cifar,
    cityscapes,
    cub200,
    digits,
    flowers102,
    folder,
    imagenet,
    motion,
    npz,
    pets,
    scene_folder,
    synthetic,
    synthetic_scenes,
    voc2012,
)

DATASETS: dict[str, Callable[[Request], Source]] = {
    "digits": digits.load,
    "synthetic": synthetic.load,
    "motion": motion.load,
    "npz": npz.load,
    "folder": folder.load,
    "imagenet": imagenet.load,
    "cifar10": cifar.cifar10,
    "cifar100": cifar.cifar100,
    "cub200": cub200.load,
    "flowers102": flowers102.load,
    "pets": pets.load,
}
"""The one table of data sets of labelled pictures and series."""

SEGMENTATION_DATASETS: dict[str, Callable[[Request], Source]] = {
    "synthetic": synthetic_scenes.load,
    "folder": scene_folder.load,
    "voc2012": voc2012.load,
    "cityscapes": cityscapes.load,
}
"""The one table of data sets whose pixels are labelled."""

__all__ = [
    "DATASETS",
    "SEGMENTATION_DATASETS",
    "VOID",
    "Augmented",
    "Examples",
    "Images",
    "Loader",
    "Preprocessing",
    "Request",
    "Rows",
    "Source",
    "augmented",
    "center_crop",
    "decode_files",
    "in_blocks",
]
