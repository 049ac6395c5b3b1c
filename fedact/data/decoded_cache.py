"""Decoded files, kept on disk: each is decoded once, when a run first needs it, whatever the seed and the process."""

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
from pathlib import Path
from stat import S_ISCHR, S_ISFIFO

import numpy as np
from PIL import Image

from fedact.config.errors import ConfigError
from fedact.config.sizes import format_bytes
from fedact.data.examples import Examples, Images, Rows, Source
from fedact.data.files import Files, some_of
from fedact.storage.disk import make_folder
from fedact.storage.locks import locked

AT_ONCE = 256
"""Files between two marks of what is there."""
MANY = 10_000
"""From here on it is said how far it is."""

log = logging.getLogger(__name__)


def settled(source: Source, folder: Path) -> Source:
    """Return a data set as a run uses it: files decoded and memory-mapped, rows of other arrays copied out of them.

    folder: where decoded files are kept. Raises ConfigError that names the files which cannot be used.
    """
    train, test = (_settled(examples, folder) for examples in (source.train, source.test))
    return replace(source, train=train, test=test)


def _settled(examples: Examples, folder: Path) -> Examples:
    masks = None if examples.masks is None else _in_place(examples.masks, folder)
    return replace(examples, images=_in_place(examples.images, folder), masks=masks)


def _in_place(array: Images, folder: Path) -> Images:
    if isinstance(array, Files):
        return kept(array, np.arange(len(array)), folder)
    if isinstance(array, Rows) and isinstance(array.array, Files):
        return kept(array.array, array.rows, folder)
    return array if isinstance(array, np.ndarray) else np.asarray(array)


def kept(files: Files, rows: np.ndarray, folder: Path) -> Rows:
    """Return these rows of the files' array out of a file that has a place for all of them; those it lacks are decoded.

    One process decodes at a time, and what it has marked is there for the others and for the next, however it ends.
    """
    own = folder / _key(files)
    if not _is_reserved(own, files) or len(_missing(own, files, rows)):
        _make_folder(own)
        with locked(own, "waiting for another process that decodes the same files"):
            _reserve(own, files)
            _decode(own, files, _missing(own, files, rows))
    return Rows(np.memmap(own / "pixels", files.dtype, "r", shape=files.shape), rows)


def _key(files: Files) -> str:
    """Return what tells these files, as they are now, and how they are decoded from any others."""
    digest = hashlib.blake2b(files.how.encode(), digest_size=16)
    root = str(files.root.absolute())
    digest.update(os.fsencode(root))
    for file in files.follows_from:
        try:
            # A Path for each of a million files would take as long as all the rest.
            state = os.stat(f"{root}/{file}")
        except OSError as error:
            raise ConfigError(f"{files.root / file} cannot be read: {error.strerror}") from None
        if S_ISFIFO(state.st_mode) or S_ISCHR(state.st_mode):
            # It would be waited for, or read for ever.
            raise ConfigError(f"{files.root / file} cannot be read: it is no file")
        digest.update(os.fsencode(file) + f"\0{state.st_size} {state.st_mtime_ns}\0".encode())
    return digest.hexdigest()


def _missing(own: Path, files: Files, rows: np.ndarray) -> np.ndarray:
    """Return those of the rows that are not marked as decoded."""
    if not _is_reserved(own, files):
        return rows
    missing: np.ndarray = rows[np.fromfile(own / "there", np.uint8)[rows] != 1]
    return missing


def _is_reserved(own: Path, files: Files) -> bool:
    sizes = {own / "pixels": files.nbytes, own / "there": len(files)}
    return all(file.is_file() and file.stat().st_size == size for file, size in sizes.items())


def _reserve(own: Path, files: Files) -> None:
    """Make a file without any content, which takes no room yet, and marks that say so, unless both are there."""
    if not _is_reserved(own, files):
        (own / "there").unlink(missing_ok=True)
        with (own / "pixels").open("wb") as opened:
            opened.truncate(files.nbytes)
        (own / "there").write_bytes(bytes(len(files)))


def _make_folder(own: Path) -> None:
    try:
        make_folder(own)
    except ConfigError as error:
        raise ConfigError(f"{error}; $FEDACT_CACHE names another place for what is kept between runs") from None


def _decode(own: Path, files: Files, rows: np.ndarray) -> None:
    """Decode rows on all cores and mark them; raises ConfigError at the end where some of them cannot be."""
    if not len(rows):
        return
    _check_room(own, files, len(rows))
    log.info(f"decoding {len(rows):,} {files.word} at {files.size}, once; they are kept in {own}")
    broken: list[str] = []
    with (own / "pixels").open("r+b") as pixels, (own / "there").open("r+b") as there, _strict_pool() as pool:
        for start in range(0, len(rows), AT_ONCE):
            some = rows[start : start + AT_ONCE]
            reasons = list(pool.map(partial(_put, files, pixels.fileno()), some))
            os.fsync(pixels.fileno())
            for row, reason in zip(some, reasons, strict=True):
                if reason is None:
                    os.pwrite(there.fileno(), b"\1", int(row))
            broken += [reason for reason in reasons if reason is not None]
            _say_how_far(files.word, start, start + len(some), len(rows))
    if broken:
        raise ConfigError(f"{len(broken):,} of {len(rows):,} {files.word} cannot be used: {some_of(broken)}")


@contextmanager
def _strict_pool() -> Iterator[ThreadPoolExecutor]:
    """Yield a thread a core: decoding leaves Python's lock, so that threads do as well as processes."""
    with warnings.catch_warnings(), ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        # Broken EXIF data harms no pixel.
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield pool


def _put(files: Files, descriptor: int, row: int) -> str | None:
    """Decode a file to its place in the file; returns what is wrong with it, if anything is."""
    try:
        pixels = files.decoded(row)
    except Exception as error:  # whatever reading raises, the file is broken
        file = files.root / files.files[row]
        reason = " ".join(str(error).split()) or type(error).__name__
        return reason if str(file) in reason else f"{file}: {reason}"
    if os.pwrite(descriptor, pixels.tobytes(), int(row) * pixels.nbytes) < pixels.nbytes:
        raise OSError(ENOSPC, os.strerror(ENOSPC))
    return None


def _check_room(own: Path, files: Files, count: int) -> None:
    """Raise ConfigError where so many decoded files have no room on the disk."""
    needed, free = files.nbytes // len(files) * count, shutil.disk_usage(own).free
    if needed > free:
        raise ConfigError(
            f"{count:,} {files.word} at {files.size} take {needed:,} bytes, but {own.parent} has {free:,}: lower "
            "--max-examples or --resolution, or let $FEDACT_CACHE name another place"
        )
    if needed > 10**9:
        log.info(f"decoded {files.word} will take {format_bytes(needed)} in {own.parent}, which may be deleted between runs")


def _say_how_far(word: str, before: int, now: int, count: int) -> None:
    """Log every tenth of many files."""
    if count >= MANY and 10 * now // count > 10 * before // count:
        log.info(f"decoded {now:,} of {count:,} {word}")
