"""Pascal VOC 2012, its segmentation task: VOCdevkit/VOC2012 in --data-dir, else downloaded; with more masks where they are.

The augmented set is SegmentationClassAug/ with ImageSets/Segmentation/trainaug.txt: then that is what is trained on.
"""

from pathlib import Path

from fedact.config.errors import ConfigError
from fedact.data.examples import Request, Source
from fedact.data.files import some_of
from fedact.data.masks import VOID, identity_classes
from fedact.data.readers.lists import fetch, read_rows
from fedact.data.scenes import Listing, scene_examples

ARCHIVE = "VOCtrainval_11-May-2012.tar"
NAMES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "dining table",
    "dog", "horse", "motorbike", "person", "potted plant", "sheep", "sofa", "train", "tv/monitor",
)  # fmt: skip


def load(request: Request) -> Source:
    """Return the scenes of train.txt, or trainaug.txt where it is there, and those of val.txt for testing.

    The frame is a square, a picture's source the year in its name. Raises ConfigError, with what to put where, if they are
    missing and cannot be downloaded, and for lists, pictures and masks that do not fit together.
    """
    from fedact.vision import datasets

    folder = request.path / "VOCdevkit" / "VOC2012"
    lists = folder / "ImageSets" / "Segmentation"
    needed = [folder / "JPEGImages", folder / "SegmentationClass", lists / "train.txt", lists / "val.txt"]
    fetch("Pascal VOC 2012", datasets.VOCSegmentation, request.path, needed, f"{ARCHIVE} unpacked in {request.path}")
    more_masks, more_names = folder / "SegmentationClassAug", lists / "trainaug.txt"
    if more_masks.is_dir() != more_names.is_file():
        there, lacks = (more_masks, more_names) if more_masks.is_dir() else (more_names, more_masks)
        raise ConfigError(f"{there} is there, but {lacks} is not: the augmented set needs both, the base set neither")
    names, masks = ("trainaug", "SegmentationClassAug") if more_masks.is_dir() else ("train", "SegmentationClass")
    train = _listed(folder, lists / f"{names}.txt", masks)
    test = _listed(folder, lists / "val.txt", "SegmentationClass")
    if both := sorted({*train.pictures} & {*test.pictures}):
        raise ConfigError(f"{lists} has pictures both to train and to test on: {some_of(both)}")
    frame = (request.side, request.side)
    trained, tested = scene_examples([train, test], request, frame, identity_classes(len(NAMES), VOID))
    return Source(trained, tested, len(NAMES), NAMES)


def _listed(folder: Path, file: Path, masks: str) -> Listing:
    """Return the pictures with their masks that a file lists, by a name a line or two paths.

    Raises ConfigError for those that are not there.
    """
    rows = [row if len(row) > 1 else [f"JPEGImages/{row[0]}.jpg", f"{masks}/{row[0]}.png"] for row in read_rows(file, 1)]
    pairs = [(row[0].lstrip("/"), row[1].lstrip("/")) for row in rows]
    if missing := [str(folder / path) for pair in pairs for path in pair if not (folder / path).is_file()]:
        raise ConfigError(f"{file} names files that are not there: {some_of(missing)}")
    pictures, masked = zip(*pairs, strict=True)
    return Listing(folder, pictures, masked, tuple(Path(picture).name.split("_")[0] for picture in pictures))
