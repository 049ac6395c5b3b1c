"""One writer at a time: a lock file in each folder that a process writes, gone when it is released or its process ends."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout, UnixFileLock

from fedact.config.errors import ConfigError

LOCK_FILE = ".lock"
"""Its name in a locked folder. One that nobody holds, left by a killed process, locks nobody out."""

log = logging.getLogger(__name__)


class Locks(ExitStack):
    """Locks on folders, all released at the end of the ``with`` block.

    folders: those that are locked.
    """

    def __init__(self) -> None:
        super().__init__()
        self.folders: set[Path] = set()

    def take(self, folder: Path) -> None:
        """Lock a folder, unless it is locked already; raises ConfigError where another process holds its lock.

        On a file system without locks, or where none may be written, a warning says so.
        """
        if folder in self.folders:
            return
        lock = _file_lock(folder)
        self.callback(_release, lock)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise ConfigError(f"{folder} is being written by another process: let it end, or stop it first") from None
        except (OSError, NotImplementedError) as error:
            log.warning(f"{folder} cannot be locked ({_reason(error)}): let one process alone write it")
        self.folders.add(folder)


@contextmanager
def locked(folder: Path, waiting: str = "", name: str = LOCK_FILE) -> Iterator[None]:
    """Hold a lock of a folder; where another process holds it, log ``waiting``, if any, and wait until it is released.

    name: of the lock's file, by default that of the whole folder. On a file system without locks, or where none may be
    written, the block runs without one.
    """
    lock = _file_lock(folder, name)
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if waiting:
                log.info(waiting)
            lock.acquire()
    except (OSError, NotImplementedError) as error:
        log.info(f"{folder} cannot be locked ({_reason(error)}): another process may write the same there")
    try:
        yield
    finally:
        _release(lock)


def is_locked(folder: Path) -> bool:
    """Tell whether a process holds the lock of a folder; where there are no locks, each could be held."""
    lock = _file_lock(folder)
    try:
        lock.acquire(timeout=0)
    except (Timeout, OSError, NotImplementedError):
        return True
    _release(lock)
    return False


def _file_lock(folder: Path, name: str = LOCK_FILE) -> BaseFileLock:
    file = folder / name
    if file.is_symlink():
        raise ConfigError(f"{file} is a link, where a lock is due: remove it")
    return FileLock(file)


def _release(lock: BaseFileLock) -> None:
    if not lock.is_locked:
        return
    try:
        # Elsewhere filelock removes the file itself. While it is held here, whoever opened it finds it without a name later.
        if isinstance(lock, UnixFileLock):
            with suppress(OSError):
                Path(lock.lock_file).unlink()
    finally:
        lock.release()


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
