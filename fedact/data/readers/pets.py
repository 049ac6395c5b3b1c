"""Oxford-IIIT Pets, breeds of cats and dogs: torchvision's folder oxford-iiit-pet in --data-dir, else downloaded."""

from pathlib import Path

from fedact.data.examples import Examples, Request, Source
from fedact.data.readers.lists import fetch, labelled_pictures, parse_number, read_rows

BREEDS = 37
ARCHIVES = ("images.tar.gz", "annotations.tar.gz")


def load(request: Request) -> Source:
    """Return the pets of trainval.txt, and those of test.txt for testing.

    Raises ConfigError, with what to put where, if they are missing and cannot be downloaded, and for a broken list.
    """
    from fedact.vision import datasets

    folder = request.path / "oxford-iiit-pet"
    needed = [folder / "images", folder / "annotations" / "trainval.txt", folder / "annotations" / "test.txt"]
    fetch("Oxford-IIIT Pets", datasets.OxfordIIITPet, request.path, needed, f"{' and '.join(ARCHIVES)} unpacked in {folder}")
    train, names = _examples(folder, "trainval.txt", request.side)
    test, others = _examples(folder, "test.txt", request.side)
    known = {**others, **names}
    return Source(train, test, BREEDS, tuple(known.get(label, f"breed {label + 1}") for label in range(BREEDS)))


def _examples(folder: Path, name: str, side: int) -> tuple[Examples, dict[int, str]]:
    """Return the pictures that a file lists, and what it calls their classes."""
    file = folder / "annotations" / name
    pairs = [(row[0], parse_number(row[1], range(1, BREEDS + 1), file) - 1) for row in read_rows(file, 2)]
    pictures = [f"{picture}.jpg" for picture, _ in pairs]
    breeds = {label: picture.rsplit("_", 1)[0].replace("_", " ").title() for picture, label in pairs}
    return labelled_pictures(folder / "images", pictures, [label for _, label in pairs], side, file), breeds
