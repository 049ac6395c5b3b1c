"""Any data set in one ``.npz`` file: x_train, y_train, x_test, y_test, and perhaps client_train and client_test."""

import zipfile
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np

from fedact.config.errors import ConfigError
from fedact.data.examples import Request, Source
from fedact.data.own import Arrays, source_of

ALWAYS_FINE, MOST_UNPACKED = 10**9, 100
"""A file may unpack to so many bytes, and to more where it is at most so many times its own size."""
MAPPED_FROM = 2**28
"""Bytes of an array from which on it is not read into memory, but mapped there, if the file is not compressed."""
LOCAL_HEADER = 30
"""Bytes before the name of a file in a zip archive; the last four say how long name and extra field are."""
KEYS = ("x_train", "y_train", "x_test", "y_test")
CLIENTS = ("client_train", "client_test")
"""Whose each example is, where that is known."""


def load(request: Request) -> Source:
    """Return the file's examples; labels with gaps and texts are the classes' names, and the classes are numbered without.

    Raises ConfigError for a missing or broken file, and as ``source_of`` does.
    """
    file = request.path
    if not file.is_file():
        raise ConfigError(f"--data-dir names no npz file: {file} does not exist or is a folder")
    try:
        with zipfile.ZipFile(file) as archive:
            promised = {
                key: _promised(archive, f"{key}.npy") for key in (*KEYS, *CLIENTS) if f"{key}.npy" in archive.namelist()
            }
            _check_promises(promised, file)
            large = {key: _mapped(archive, f"{key}.npy", file) for key in promised if promised[key] >= MAPPED_FROM}
            mapped = {key: array for key, array in large.items() if array is not None}
        with np.load(file, allow_pickle=False) as arrays:
            loaded = {key: mapped[key] if key in mapped else arrays[key] for key in promised}
    except ConfigError:
        raise
    except Exception as error:  # whatever reading raises, the file is broken
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"{file} cannot be read as npz: {reason}") from None
    train, test = (
        Arrays(loaded[f"x_{part}"], loaded[f"y_{part}"], loaded.get(f"client_{part}")) for part in ("train", "test")
    )
    return source_of(train, test, str(file))


def _mapped(archive: zipfile.ZipFile, name: str, file: Path) -> np.ndarray | None:
    """Return an array that lies in the file as it is, mapped into memory; None where it is compressed, or in other order."""
    place = archive.getinfo(name)
    with archive.open(name) as opened:
        shape, by_columns, dtype = _header(opened)
        start = opened.tell()
    if place.compress_type != zipfile.ZIP_STORED or by_columns or dtype.hasobject:
        return None
    with file.open("rb") as content:
        content.seek(place.header_offset + LOCAL_HEADER - 4)
        lengths = np.frombuffer(content.read(4), "<u2")
    return np.memmap(file, dtype, "r", place.header_offset + LOCAL_HEADER + int(lengths.sum()) + start, shape)


def _header(opened: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return shape, whether columns come first, and type of the array that a file holds from its next byte on."""
    version = np.lib.format.read_magic(opened)
    return (np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0)(opened)


def _promised(archive: zipfile.ZipFile, name: str) -> int:
    """Return how many bytes an array takes by its header; raises ValueError where that is not what the archive holds."""
    with archive.open(name) as opened:
        shape, _, dtype = _header(opened)
        size, held = prod(shape) * dtype.itemsize, archive.getinfo(name).file_size - opened.tell()
    if size != held and not dtype.hasobject:
        raise ValueError(f"the header of {name} promises {size:,} bytes, but there are {held:,}")
    return size


def _check_promises(promised: dict[str, int], file: Path) -> None:
    if missing := [key for key in KEYS if key not in promised]:
        raise ConfigError(f"{file} lacks {', '.join(missing)}: an npz data set holds {', '.join(KEYS)}")
    unpacked, packed = sum(promised.values()), file.stat().st_size
    if unpacked > max(ALWAYS_FINE, MOST_UNPACKED * packed):
        raise ConfigError(f"{file} would take {unpacked:,} bytes, far more than its {packed:,}: no images shrink like that")
