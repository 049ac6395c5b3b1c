"""ImageNet, or some of its classes: train/<wnid>/ and val/<wnid>/ in --data-dir, in the order of the wnids."""

from fedact.config.errors import ConfigError
from fedact.data.examples import Request, Source
from fedact.data.readers.class_folders import is_folder, list_folder, read_train_and_test


def load(request: Request) -> Source:
    """Return the training pictures, and those of val for testing.

    Raises ConfigError for missing or empty folders, and for classes that are not the same in both.
    """
    train, val = request.path / "train", request.path / "val"
    for folder in (train, val):
        if not folder.is_dir():
            raise ConfigError(
                f"--data-dir {request.path} has no folder {folder.name}: ImageNet's is train/<wnid>/, val/<wnid>/"
            )
    if not any(is_folder(entry) for entry in list_folder(val)) and any(list_folder(val)):
        raise ConfigError(
            f"{val} is not sorted into val/<wnid>/: torchvision.datasets.imagenet.parse_val_archive({str(request.path)!r}) "
            "unpacks the archive so, after parse_devkit_archive"
        )
    examples, tested, names = read_train_and_test(train, val, request.side)
    return Source(examples, tested, len(names), tuple(names))
