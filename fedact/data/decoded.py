"""Decoded pictures, kept on disk: each is decoded once, when a run first needs it, whatever the seed and the process."""

import fcntl
import hashlib
import logging
import os
import shutil
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from errno import ENOSPC
from functools import partial
from math import prod
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

from fedact.data.examples import Examples, Rows, Source
from fedact.data.pictures import Pictures
from fedact.disk import make_folder
from fedact.errors import ConfigError
from fedact.sizes import format_bytes

HOW = "middle square, bilinear, 1"
"""Another word here, and what was decoded in another way is left alone."""
AT_ONCE = 256
"""Pictures between two marks of what is there."""
MANY = 10_000
"""From here on it is said how far it is."""
MOST_NAMED = 3

log = logging.getLogger(__name__)


def settled(source: Source, folder: Path) -> Source:
    """Return a data set as a run uses it: pictures decoded and memory-mapped, rows of other arrays copied out of them.

    folder: where decoded pictures are kept. Raises ConfigError that names the pictures which cannot be decoded.
    """
    train, test = (_settled(examples, folder) for examples in (source.train, source.test))
    return replace(source, train=train, test=test)


def _settled(examples: Examples, folder: Path) -> Examples:
    images = examples.images
    if isinstance(images, Pictures):
        return Examples(kept(images, np.arange(len(images)), folder), examples.labels)
    if isinstance(images, Rows) and isinstance(images.array, Pictures):
        return Examples(kept(images.array, images.rows, folder), examples.labels)
    return examples if isinstance(images, np.ndarray) else Examples(np.asarray(images), examples.labels)


def kept(pictures: Pictures, rows: np.ndarray, folder: Path) -> Rows:
    """Return these rows of the pictures out of a file that has a place for all of them; those it lacks are decoded.

    One process decodes at a time, and what it has marked is there for the others and for the next, however it ends.
    """
    own = folder / _key(pictures)
    if not _is_reserved(own, pictures) or len(_missing(own, pictures, rows)):
        _make_folder(own)
        with _alone(own):
            _reserve(own, pictures)
            _decode(own, pictures, _missing(own, pictures, rows))
    return Rows(np.memmap(own / "pixels", np.uint8, "r", shape=pictures.shape), rows)


def _key(pictures: Pictures) -> str:
    """Return what tells these files, as they are now, and how they are decoded from any others."""
    digest = hashlib.blake2b(f"{HOW} {PIL.__version__} {pictures.side} ".encode(), digest_size=16)
    root = str(pictures.root.absolute())
    digest.update(os.fsencode(root))
    for file in pictures.files:
        try:
            # A Path for each of a million files would take as long as all the rest.
            state = os.stat(f"{root}/{file}")
        except OSError as error:
            raise ConfigError(f"{pictures.root / file} cannot be read: {error.strerror}") from None
        digest.update(os.fsencode(file) + f"\0{state.st_size} {state.st_mtime_ns}\0".encode())
    return digest.hexdigest()


def _missing(own: Path, pictures: Pictures, rows: np.ndarray) -> np.ndarray:
    """Return those of the rows that are not marked as decoded."""
    if not _is_reserved(own, pictures):
        return rows
    missing: np.ndarray = rows[np.fromfile(own / "there", np.uint8)[rows] != 1]
    return missing


def _is_reserved(own: Path, pictures: Pictures) -> bool:
    sizes = {own / "pixels": prod(pictures.shape), own / "there": len(pictures)}
    return all(file.is_file() and file.stat().st_size == size for file, size in sizes.items())


def _reserve(own: Path, pictures: Pictures) -> None:
    """Make a file of no pictures, which takes no room yet, and marks that say so, unless both are there."""
    if not _is_reserved(own, pictures):
        (own / "there").unlink(missing_ok=True)
        with (own / "pixels").open("wb") as opened:
            opened.truncate(prod(pictures.shape))
        (own / "there").write_bytes(bytes(len(pictures)))


def _make_folder(own: Path) -> None:
    try:
        make_folder(own)
    except ConfigError as error:
        raise ConfigError(f"{error}; $FEDACT_CACHE names another place for what is kept between runs") from None


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until no other process is in the folder, and keep them out meanwhile."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("waiting for another process that decodes the same pictures")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:
            # Some network file systems know no locks: two processes then write the same bytes to the same places.
            log.info(f"{folder} cannot be locked: another process may decode the same pictures")
        yield
    finally:
        os.close(descriptor)


def _decode(own: Path, pictures: Pictures, rows: np.ndarray) -> None:
    """Decode rows on all cores and mark them; raises ConfigError at the end where some of them cannot be."""
    if not len(rows):
        return
    _check_room(own, pictures, len(rows))
    log.info(f"decoding {len(rows):,} pictures at {pictures.side} px, once; they are kept in {own}")
    broken: list[str] = []
    with (own / "pixels").open("r+b") as pixels, (own / "there").open("r+b") as there, _strict_pool() as pool:
        for start in range(0, len(rows), AT_ONCE):
            some = rows[start : start + AT_ONCE]
            reasons = list(pool.map(partial(_put, pictures, pixels.fileno()), some))
            os.fsync(pixels.fileno())
            for row, reason in zip(some, reasons, strict=True):
                if reason is None:
                    os.pwrite(there.fileno(), b"\1", int(row))
            broken += [reason for reason in reasons if reason is not None]
            _say_how_far(start, start + len(some), len(rows))
    if broken:
        shown = "; ".join(broken[:MOST_NAMED]) + ("; ..." if len(broken) > MOST_NAMED else "")
        raise ConfigError(f"{len(broken):,} of {len(rows):,} pictures cannot be decoded: {shown}")


@contextmanager
def _strict_pool() -> Iterator[ThreadPoolExecutor]:
    """Yield a thread a core: decoding leaves Python's lock, so that threads do as well as processes."""
    with warnings.catch_warnings(), ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        # Broken EXIF data harms no pixel.
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield pool


def _put(pictures: Pictures, descriptor: int, row: int) -> str | None:
    """Decode a picture to its place in the file; returns what is wrong with it, if anything is."""
    try:
        pixels = pictures.decoded(row)
    except Exception as error:  # whatever reading raises, the file is broken
        file = pictures.root / pictures.files[row]
        reason = " ".join(str(error).split()) or type(error).__name__
        return reason if str(file) in reason else f"{file}: {reason}"
    if os.pwrite(descriptor, pixels.tobytes(), int(row) * pixels.nbytes) < pixels.nbytes:
        raise OSError(ENOSPC, os.strerror(ENOSPC))
    return None


def _check_room(own: Path, pictures: Pictures, count: int) -> None:
    """Raise ConfigError where so many decoded pictures have no room on the disk."""
    needed, free = count * prod(pictures.shape[1:]), shutil.disk_usage(own).free
    if needed > free:
        raise ConfigError(
            f"{count:,} pictures at {pictures.side} px take {needed:,} bytes, but {own.parent} has {free:,}: lower "
            "--max-examples or --resolution, or let $FEDACT_CACHE name another place"
        )
    if needed > 10**9:
        log.info(f"decoded pictures will take {format_bytes(needed)} in {own.parent}, which may be deleted between runs")


def _say_how_far(before: int, now: int, count: int) -> None:
    """Log every tenth of many pictures."""
    if count >= MANY and 10 * now // count > 10 * before // count:
        log.info(f"decoded {now:,} of {count:,} pictures")
