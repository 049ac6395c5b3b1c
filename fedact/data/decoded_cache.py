"""Decoded picture files on disk: each is decoded once, when a run first needs it, whatever the seed and the process."""

import hashlib
import logging
import os
import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from stat import S_ISCHR, S_ISFIFO

import numpy as np
from PIL import Image

from fedact.config.errors import ConfigError
from fedact.config.sizes import format_bytes
from fedact.data.examples import Examples, Images, Rows, Source
from fedact.data.files import Files, some_of
from fedact.storage.row_cache import Column, RowCache, open_rows
from fedact.storage.system import processors

AT_ONCE = 256
"""Files between two marks of what is in the cache."""
MANY = 10_000
"""From this many files on, progress is logged."""
ELSEWHERE = "$FEDACT_CACHE names another place for what is kept between runs"

log = logging.getLogger(__name__)


def decode_files(source: Source, folder: Path) -> Source:
    """Return a data set whose pictures and masks are rows of memory maps under a folder, decoded where they are not yet.

    Arrays stay as they are, and rows of arrays are copied out of them. Raises ConfigError that names the files which cannot
    be used.
    """

    def pixels(array: Images) -> Images:
        if isinstance(array, Files):
            return decoded_rows(array, np.arange(len(array)), folder)
        if isinstance(array, Rows) and isinstance(array.array, Files):
            return decoded_rows(array.array, array.rows, folder)
        return array if isinstance(array, np.ndarray) else np.asarray(array)

    def decoded(examples: Examples) -> Examples:
        masks = None if examples.masks is None else pixels(examples.masks)
        return replace(examples, images=pixels(examples.images), masks=masks)

    return replace(source, train=decoded(source.train), test=decoded(source.test))


def decoded_rows(files: Files, rows: np.ndarray, folder: Path) -> Rows:
    """Return rows of a memory map that has a place for every file; the rows that are not there yet are decoded.

    One process decodes at a time, and what it has marked is there for the others and for the next, however it ends. Raises
    ConfigError that names the files which cannot be used, or where the folder has no room or may not be written.
    """
    try:
        cache = open_rows(folder, _fingerprint(files), [Column("pixels", files.dtype, files.item_shape)], len(files))
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written to: {error.strerror}; {ELSEWHERE}") from None
    if not cache.has(rows).all():
        if not os.access(cache.folder, os.W_OK):
            raise ConfigError(f"{cache.folder} may not be written to; {ELSEWHERE}")
        with cache.alone("waiting for another process that decodes the same files"):
            _decode(cache, files, rows[~cache.has(rows)])
    return Rows(cache.values[0], rows)


def _fingerprint(files: Files) -> str:
    """Return a digest of how the files are decoded and of their names, sizes and times; raises ConfigError for no file."""
    digest = hashlib.blake2b(files.decoding.encode(), digest_size=16)
    root = str(files.root.absolute())
    digest.update(os.fsencode(root))
    for file in files.dependencies:
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


def _decode(cache: RowCache, files: Files, rows: np.ndarray) -> None:
    """Decode files into their rows on all cores; raises ConfigError first for want of room, at the end for broken files."""
    if not len(rows):
        return
    place, needed = cache.folder.parent, files.nbytes // len(files) * len(rows)
    if needed > (free := shutil.disk_usage(cache.folder).free):
        raise ConfigError(
            f"{len(rows):,} {files.noun} at {files.item_size} take {needed:,} bytes, but {place} has {free:,}: lower "
            "--max-examples or --resolution, or let $FEDACT_CACHE name another place"
        )
    if needed > 10**9:
        log.info(f"decoded {files.noun} will take {format_bytes(needed)} in {place}, which may be deleted between runs")
    log.info(f"decoding {len(rows):,} {files.noun} at {files.item_size}, once; they are kept in {cache.folder}")
    broken: list[str] = []
    # Decoding leaves Python's lock: threads do as well as processes.
    with warnings.catch_warnings(), ThreadPoolExecutor(processors()) as pool:
        # Broken EXIF data harms no pixel.
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        for start in range(0, len(rows), AT_ONCE):
            some = rows[start : start + AT_ONCE]
            reasons = list(pool.map(partial(_decode_one, cache, files), some))
            cache.mark(some[[reason is None for reason in reasons]])
            broken += [reason for reason in reasons if reason is not None]
            done = start + len(some)
            if len(rows) >= MANY and 10 * done // len(rows) > 10 * start // len(rows):
                log.info(f"decoded {done:,} of {len(rows):,} {files.noun}")
    if broken:
        raise ConfigError(f"{len(broken):,} of {len(rows):,} {files.noun} cannot be used: {some_of(broken)}")


def _decode_one(cache: RowCache, files: Files, row: int) -> str | None:
    """Decode a file into its row; returns what is wrong with the file, None where nothing is."""
    try:
        pixels = files.decode(row)
    except Exception as error:  # whatever reading raises, the file is broken
        file = files.root / files.files[row]
        reason = " ".join(str(error).split()) or type(error).__name__
        return reason if str(file) in reason else f"{file}: {reason}"
    cache.write(np.array([row]), pixels[None])
    return None
