"""CUB-200-2011, birds: CUB_200_2011/images.txt and the lists beside it, in --data-dir."""

from pathlib import Path

from fedact.config.errors import ConfigError
from fedact.data.examples import Examples, Request, Source
from fedact.data.readers.lists import labelled_pictures, parse_number, read_rows

SITE = "https://www.vision.caltech.edu/datasets/cub_200_2011/"


def load(request: Request) -> Source:
    """Return the birds, dealt into training and testing as published.

    Raises ConfigError, with what to put where, if there are none, and for lists that do not fit together.
    """
    folder = request.path / "CUB_200_2011"
    if not (folder / "images.txt").is_file():
        raise ConfigError(f"CUB-200 is not in {request.path}: put CUB_200_2011 there, out of CUB_200_2011.tgz from {SITE}")
    names = [name for _, name in _by_id(folder / "classes.txt")]
    files = dict(_by_id(folder / "images.txt"))
    labels = _numbers(folder / "image_class_labels.txt", files, range(1, len(names) + 1))
    trains = _numbers(folder / "train_test_split.txt", files, range(2))

    def part(train: bool) -> Examples:
        own = [key for key in files if trains[key] == train]
        source = folder / ("images.txt" if own else "train_test_split.txt")
        return labelled_pictures(
            folder / "images", [files[key] for key in own], [labels[key] - 1 for key in own], request.side, source
        )

    # Of names such as 001.Black_footed_Albatross.
    return Source(part(True), part(False), len(names), tuple(name.split(".", 1)[-1].replace("_", " ") for name in names))


def _by_id(file: Path) -> list[tuple[str, str]]:
    return [(row[0], row[1]) for row in read_rows(file, 2)]


def _numbers(file: Path, files: dict[str, str], allowed: range) -> dict[str, int]:
    """Return each picture's number; raises ConfigError for a picture that has none, or one that is not allowed."""
    numbers = {key: parse_number(text, allowed, file) for key, text in _by_id(file)}
    for key in files.keys() - numbers.keys():
        raise ConfigError(f"{file} says nothing of picture {key}, {files[key]}")
    return numbers
