"""Tiny data sets of picture files, in the layouts that the real ones have on disk."""

from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

CLASSES = ("n01440764", "n02102040", "n03888257")
MODES = ("RGB", "L", "RGB", "P", "RGBA")
"""What is in real folders, and has to become RGB."""


def write_picture(file: Path, number: int, shade: int | None = None) -> None:
    """Write a picture of its own size, mode and pixels; shade: about which gray value, for a class that can be learned."""
    random = np.random.default_rng(number)
    height, width = random.integers(40, 81, 2)
    low, high = (0, 256) if shade is None else (shade, shade + 30)
    pixels = random.integers(low, high, (height, width, 3), dtype=np.uint8)
    mode = MODES[number % len(MODES)] if file.suffix == ".png" else MODES[number % 2]
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).convert(mode).save(file)


def write_folder(root: Path, each: int, suffix: str = ".JPEG", classes=CLASSES, shades: bool = False) -> Path:
    """Write so many pictures of each class into root/<class>/."""
    for label, name in enumerate(classes):
        for place in range(each):
            shade = 100 * label if shades else None
            write_picture(root / name / f"{name}_{place}{suffix}", 1000 * label + place, shade)
    return root


def write_imagenet(root: Path, each: int = 3, test: int = 2, **settings) -> Path:
    write_folder(root / "train", each, **settings)
    write_folder(root / "val", test, **settings)
    return root


def write_cub(root: Path) -> Path:
    """Two classes of three birds; the last of each is for testing."""
    folder = root / "CUB_200_2011"
    names = ("001.Black_footed_Albatross", "002.Laysan_Albatross")
    files = [f"{name}/bird_{place}.jpg" for name in names for place in range(3)]
    for number, file in enumerate(files):
        write_picture(folder / "images" / file, number)
    _write_lines(folder / "classes.txt", [f"{label} {name}" for label, name in enumerate(names, 1)])
    _write_lines(folder / "images.txt", [f"{key} {file}" for key, file in enumerate(files, 1)])
    _write_lines(folder / "image_class_labels.txt", [f"{key} {1 + (key > 3)}" for key in range(1, 7)])
    _write_lines(folder / "train_test_split.txt", [f"{key} {int(key % 3 != 0)}" for key in range(1, 7)])
    return folder


def write_flowers(root: Path) -> Path:
    """Eight flowers: three to train on, two to validate, three to test."""
    folder = root / "flowers-102"
    for number in range(1, 9):
        write_picture(folder / "jpg" / f"image_{number:05d}.jpg", number)
    savemat(folder / "imagelabels.mat", {"labels": np.array([[77, 77, 1, 1, 102, 102, 5, 5]], np.uint8)})
    sets = {"trnid": [[7, 1, 3]], "valid": [[5, 6]], "tstid": [[2, 4, 8]]}
    savemat(folder / "setid.mat", {key: np.array(value, np.uint16) for key, value in sets.items()})
    return folder


def write_pets(root: Path) -> Path:
    """Three breeds, cats with a capital letter."""
    folder = root / "oxford-iiit-pet"
    breeds = (("Abyssinian", 1), ("american_bulldog", 2), ("Egyptian_Mau", 10))
    for name, places in (("trainval.txt", (1, 2)), ("test.txt", (3, 100))):
        rows = [(f"{breed}_{place}", label) for breed, label in breeds for place in places]
        for number, (picture, _) in enumerate(rows):
            write_picture(folder / "images" / f"{picture}.jpg", number + 10 * places[0])
        (folder / "annotations").mkdir(exist_ok=True)
        _write_lines(folder / "annotations" / name, [f"{picture} {label} 1 1" for picture, label in rows])
    return folder


def _write_lines(file: Path, lines: list[str]) -> None:
    file.write_text("\n".join(lines) + "\n")
