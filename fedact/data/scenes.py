"""What all data sets of scenes have in common: pictures with masks, checked, in one frame, and dealt by class or source."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedact.config.errors import ConfigError
from fedact.data.class_ids import ranges
from fedact.data.decoded_cache import decoded_rows
from fedact.data.examples import Examples, Request
from fedact.data.files import some_of
from fedact.data.masks import IDS, VOID, Masks, Survey, class_table, count_classes, most_frequent_class
from fedact.data.pictures import Frame, Scenes


@dataclass(frozen=True)
class Listing:
    """Pictures with their masks, relative to root, and where each comes from."""

    root: Path
    pictures: tuple[str, ...]
    masks: tuple[str, ...]
    sources: tuple[str, ...]


def pair_masks(root: Path, pictures: Mapping[str, str], masks: Mapping[str, str], sources: Mapping[str, str]) -> Listing:
    """Return the pictures with the masks of the same names, sorted; raises ConfigError that names what stands alone."""
    alone = [f"{root / file} has no mask" for name, file in sorted(pictures.items()) if name not in masks]
    alone += [f"{root / file} has no picture" for name, file in sorted(masks.items()) if name not in pictures]
    if alone:
        raise ConfigError(f"pictures and masks must go in pairs: {some_of(alone)}")
    names = sorted(pictures)
    return Listing(root, *(tuple(each[name] for name in names) for each in (pictures, masks, sources)))


def count_mask_ids(listing: Listing, cache: Path) -> np.ndarray:
    """Return the number of pixels of each id in each mask, uint32 (masks, 256), from a cache.

    Raises ConfigError that names the masks which are none, or not of their pictures' sizes.
    """
    survey = Survey(listing.root, listing.masks, listing.pictures)
    return np.asarray(decoded_rows(survey, np.arange(len(survey)), cache))


def scene_examples(
    listings: Sequence[Listing], request: Request, frame: Frame, ids: Mapping[int, int], hint: str = ""
) -> list[Examples]:
    """Return the examples of each listing, labelled by class or source; nothing is decoded before it is indexed.

    ids: the class of each id that is allowed, or VOID. hint: what to add where a mask holds another. Raises ConfigError that
    names such masks.
    """
    classes = class_table(ids)
    counts = [count_mask_ids(listing, request.cache) for listing in listings]
    for listing, count in zip(listings, counts, strict=True):
        _check_ids(listing, count, ids, hint)
    pixels = [count_classes(count, classes)[:, :VOID] for count in counts]
    if request.partition_by == "source":
        names = sorted({source for listing in listings for source in listing.sources})
        numbers = {name: number for number, name in enumerate(names)}
        labels = [np.array([numbers[source] for source in listing.sources], np.int64) for listing in listings]
    else:
        labels = [most_frequent_class(each) for each in pixels]
    return [
        Examples(
            Scenes(listing.root, listing.pictures, frame), numbers, Masks(listing.root, listing.masks, frame, classes), each
        )
        for listing, numbers, each in zip(listings, labels, pixels, strict=True)
    ]


def _check_ids(listing: Listing, counts: np.ndarray, ids: Mapping[int, int], hint: str) -> None:
    unknown = np.setdiff1d(np.arange(IDS), list(ids))
    rows, columns = np.nonzero(counts[:, unknown])
    if not len(rows):
        return
    wrong = [f"{listing.root / listing.masks[row]} holds {unknown[columns[rows == row]][0]}" for row in np.unique(rows)]
    raise ConfigError(f"ids that are no class, where {ranges(sorted(ids))} are allowed{hint}: {some_of(wrong)}")
