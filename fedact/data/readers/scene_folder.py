"""Any folder of scenes: images/ and masks/ in train/ and val/ or test/ of --data-dir, or these two alone."""

from pathlib import Path

import numpy as np

from fedact.config.errors import ConfigError
from fedact.data.class_ids import classes_of_ids, ranges
from fedact.data.examples import Request, Source
from fedact.data.files import some_of
from fedact.data.masks import IDS, VOID, identity_classes
from fedact.data.partition import stratified
from fedact.data.pictures import SUFFIXES, frame_of
from fedact.data.readers.class_folders import files_below, say_left_out
from fedact.data.readers.folder import TEST_SHARE, held_out_folder
from fedact.data.readers.lists import read_rows
from fedact.data.scenes import Listing, count_mask_ids, pair_masks, scene_examples

HINT = " (--void names the one that counts for nothing)"


def load(request: Request) -> Source:
    """Return the scenes; without folders for testing a quarter is for that, stratified by what the scenes are dealt by.

    The classes are the lines of classes.txt, else the ids of the masks to train on, and of the others up to the largest of
    these. A picture's source is the
    folder that it lies in, else what its name holds before an underscore. Raises ConfigError for missing or empty folders,
    and for pictures and masks that do not fit together.
    """
    held_out = held_out_folder(request.path)
    if held_out is None and not (request.path / "images").is_dir():
        raise ConfigError(f"--data-dir {request.path} has neither train and val or test, nor images and masks")
    listings = [_listed(request.path / part) for part in (("train", held_out) if held_out else ("",))]
    ids, names = _classes(request, [count_mask_ids(listing, request.cache) for listing in listings])
    classes = len(set(ids.values()) - {VOID})
    frame = frame_of(listings[0].root / listings[0].pictures[0], request.side)
    first, *rest = scene_examples(listings, request, frame, ids, HINT)
    if rest:
        return Source(first, rest[0], classes, names)
    if len(first) < 2:
        raise ConfigError(f"{request.path / 'images'} holds one picture: there must be some to train and some to test on")
    test = stratified(first.labels, max(1, round(TEST_SHARE * len(first))), request.generator)
    train = np.setdiff1d(np.arange(len(first)), test)
    return Source(first.subset(train), first.subset(test), classes, names)


def _classes(request: Request, counts: list[np.ndarray]) -> tuple[dict[int, int], tuple[str, ...]]:
    """Return the class of each id that is allowed, or VOID, and the names of the classes, none where they have none.

    counts: for each listing, the pixels of each id in each mask, (masks, 256). Raises ConfigError where there are not two
    classes.
    """
    names = _names(request.path / "classes.txt")
    trained, *tested = (set(np.flatnonzero(count.any(axis=0)).tolist()) for count in counts)
    scored = trained - {request.void}
    if len(names) == 1 or len(scored) < 2:
        raise ConfigError(_too_few(request, sorted(trained.union(*tested)), bool(names)))
    if names:
        return identity_classes(len(names), request.void), names
    others = {number for held in tested for number in held if number < max(scored)} - {request.void}
    classes, names = classes_of_ids(scored | others, f"{request.path}, in its masks,")
    return {**classes, request.void: VOID}, names


def _too_few(request: Request, held: list[int], named: bool) -> str:
    """Return what to do where there are not two classes. held: the masks' ids; named: there is a classes.txt."""
    says = f"{request.path} has fewer than two classes: its masks hold {ranges(held)}, and --void {request.void} is no class"
    free = next((number for number in range(IDS) if number not in held), None)
    if request.void not in held or free is None:
        return says
    without = " and no classes.txt" if named else ""
    return f"{says}; if {request.void} is one, give an id that no mask holds: --void {free}{without}"


def _names(file: Path) -> tuple[str, ...]:
    """Return the names of the classes, none where there is no such file; raises ConfigError for doubles."""
    if not file.exists() and not file.is_symlink():
        return ()
    names = [" ".join(row) for row in read_rows(file, 1)]
    if doubles := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"{file} names a class more than once: {some_of(doubles)}")
    if len(names) > VOID:
        raise ConfigError(f"{file} names {len(names):,} classes, and a mask can hold at most {VOID}")
    return tuple(names)


def _listed(folder: Path) -> Listing:
    pictures, masks = (_by_stem(folder, kind) for kind in ("images", "masks"))
    return pair_masks(folder, pictures, masks, {stem: _source(stem) for stem in pictures})


def _by_stem(folder: Path, kind: str) -> dict[str, str]:
    """Return the files under folder/kind by their paths there without an ending; raises ConfigError for two of one name."""
    pictures, others = files_below(folder / kind)
    say_left_out(folder / kind, others)
    files = sorted(pictures)
    if not files:
        raise ConfigError(f"{folder / kind} holds no picture ({', '.join(SUFFIXES)})")
    stems = {file.rsplit(".", 1)[0]: f"{kind}/{file}" for file in files}
    if doubles := [str(folder / kind / file) for file in files if stems[file.rsplit(".", 1)[0]] != f"{kind}/{file}"]:
        raise ConfigError(f"two files of one name, but for its ending: {some_of(doubles)}")
    return stems


def _source(stem: str) -> str:
    folder, _, name = stem.rpartition("/")
    before, underscore, _ = name.partition("_")
    return folder or (before if underscore else "")
