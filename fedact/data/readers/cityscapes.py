"""Cityscapes: leftImg8bit/ and gtFine/ in --data-dir, as its archives hold them."""

from pathlib import Path

from fedact.config.errors import ConfigError
from fedact.data.examples import Request, Source
from fedact.data.masks import VOID, identity_classes
from fedact.data.pictures import frame_of
from fedact.data.readers.class_folders import is_folder, list_folder
from fedact.data.scenes import Listing, pair_masks, scene_examples

SITE = "https://www.cityscapes-dataset.com"
ARCHIVES = ("leftImg8bit_trainvaltest.zip", "gtFine_trainvaltest.zip")
PICTURE = "_leftImg8bit.png"
OFFICIAL, PREPARED = "_gtFine_labelIds.png", "_gtFine_labelTrainIds.png"


def load(request: Request) -> Source:
    """Return the scenes of train, and those of val for testing, in the 19 classes that are scored.

    A picture's source is its city. Where there are masks of train ids, all are read from those. Raises ConfigError, with
    what to put where, if the folders are missing, and for pictures and masks that do not fit together.
    """
    folders = [request.path / kind / part for kind in ("leftImg8bit", "gtFine") for part in ("train", "val")]
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(
                f"Cityscapes lacks {folder}: put leftImg8bit and gtFine there, out of {' and '.join(ARCHIVES)}, which "
                f"{SITE} gives to those who register, or name another --data-dir"
            )
    prepared = any(_files(folder, PREPARED) for folder in folders[2:])
    ending = PREPARED if prepared else OFFICIAL
    train, test = (_listed(request.path, part, ending) for part in ("train", "val"))
    frame = frame_of(request.path / train.pictures[0], request.side)
    names, official = _classes()
    ids = identity_classes(len(names), VOID) if prepared else official
    trained, tested = scene_examples([train, test], request, frame, ids)
    return Source(trained, tested, len(names), names)


def _classes() -> tuple[tuple[str, ...], dict[int, int]]:
    """Return the names of the classes, and the class of each official id, VOID for those that are not scored."""
    from fedact.vision import datasets

    labels = [label for label in datasets.Cityscapes.classes if label.id >= 0]
    scored = {label.train_id: label.name for label in labels if not label.ignore_in_eval}
    return tuple(scored[number] for number in sorted(scored)), {**{each.id: each.train_id for each in labels}, VOID: VOID}


def _listed(root: Path, part: str, ending: str) -> Listing:
    pictures, masks = _files(root / "leftImg8bit" / part, PICTURE), _files(root / "gtFine" / part, ending)
    if not pictures:
        raise ConfigError(f"{root / 'leftImg8bit' / part} holds no picture: they are CITY/*{PICTURE}")
    return pair_masks(
        root,
        {name: f"leftImg8bit/{part}/{name}{PICTURE}" for name in pictures},
        {name: f"gtFine/{part}/{name}{ending}" for name in masks},
        {name: name.split("/")[0] for name in pictures},
    )


def _files(folder: Path, ending: str) -> list[str]:
    """Return the files CITY/NAME with an ending, without it."""
    cities = [entry.name for entry in list_folder(folder) if is_folder(entry)]
    return [
        f"{city}/{entry.name.removesuffix(ending)}"
        for city in cities
        for entry in list_folder(folder / city)
        if entry.name.endswith(ending)
    ]
