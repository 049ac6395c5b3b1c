"""What Linux, macOS and Windows do differently, each function by what the system at hand offers."""

import ctypes
import os
import platform
import time
from contextlib import suppress
from ctypes import c_ulong, c_void_p
from errno import ELOOP
from math import ceil
from pathlib import Path
from threading import Lock
from typing import BinaryIO

BLOCK = bytes(2**20)
OWNER_FILE, OWNER_FOLDER = 0o600, 0o700
REPLACE_ATTEMPTS, REPLACE_PAUSE_SECONDS = 20, 0.05
CGROUP_LIMIT = Path("/sys/fs/cgroup/cpu.max")
"""A container's processor time in a period, both in microseconds; "max" where there is no limit."""
SET_SPARSE = 0x900C4
"""FSCTL_SET_SPARSE, the code of Windows by which a file may have holes."""

_SEEKING = Lock()
"""Held by the thread that moves a file's position and writes there."""


def processors() -> int:
    """Return how many processors this process may use; all of the machine's where the system does not say.

    A container's limit counts where Linux tells it.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    count = len(affinity(0)) if affinity else os.cpu_count() or 1
    with suppress(OSError, ValueError):
        quota, period = CGROUP_LIMIT.read_text(encoding="ascii").split()
        return max(1, min(count, ceil(int(quota) / int(period))))
    return count


def processor_name() -> str:
    """Return the name of the processor's model; where the system tells none, "" or the name of a family."""
    with suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def sync_folder(folder: Path) -> None:
    """Put a folder's names on the disk. Windows opens no folder: there the file system's own journal has to do."""
    if (directory := getattr(os, "O_DIRECTORY", None)) is None:
        return
    descriptor = os.open(folder, os.O_RDONLY | directory)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_data(descriptor: int) -> None:
    """Put on the disk what was written into an open file, without its times where the system can leave them out."""
    getattr(os, "fdatasync", os.fsync)(descriptor)


def create(file: Path) -> BinaryIO:
    """Return a new file of bytes, opened to write, that its owner alone may read."""
    binary = getattr(os, "O_BINARY", 0)
    return open(file, "xb", opener=lambda path, flags: os.open(path, flags | binary, OWNER_FILE))


def make_private(folder: Path) -> None:
    """Make a folder that its owner alone may look into; a folder of the owner's that is there becomes one."""
    folder.mkdir(OWNER_FOLDER, parents=True, exist_ok=True)
    # Windows has no such modes: there it is the user's own profile that keeps others out.
    with suppress(OSError):
        folder.chmod(OWNER_FOLDER)


def replace(source: Path, target: Path) -> None:
    """Rename a file over another; for a second, wait for whoever has it open: Windows refuses to replace an open file."""
    for _ in range(REPLACE_ATTEMPTS):
        try:
            return os.replace(source, target)
        except PermissionError:
            time.sleep(REPLACE_PAUSE_SECONDS)
    return os.replace(source, target)


def open_to_append(file: Path) -> int:
    """Return a descriptor that appends bytes to an existing file; raises OSError for a link."""
    no_follow = getattr(os, "O_NOFOLLOW", 0)
    if not no_follow and file.is_symlink():
        raise OSError(ELOOP, os.strerror(ELOOP), str(file))
    # Windows writes "\r\n" for "\n" into a file that is not opened as binary.
    return os.open(file, os.O_WRONLY | os.O_APPEND | no_follow | getattr(os, "O_BINARY", 0))


def write_at(descriptor: int, content: bytes, position: int) -> None:
    """Write all of the content from a position of an open file on; raises OSError where the disk is full."""
    while content:
        if hasattr(os, "pwrite"):
            written = os.pwrite(descriptor, content, position)
        else:
            with _SEEKING:
                os.lseek(descriptor, position, os.SEEK_SET)
                written = os.write(descriptor, content)
        content, position = content[written:], position + written


def reserve(descriptor: int, size: int) -> None:
    """Give an empty file so many zeros that have their room on the disk; raises OSError where it has none."""
    if hasattr(os, "posix_fallocate"):
        if size:
            os.posix_fallocate(descriptor, 0, size)
        return
    for start in range(0, size, len(BLOCK)):
        write_at(descriptor, BLOCK[: size - start], start)


def extend(descriptor: int, size: int) -> None:
    """Give an empty file so many zeros that take no room on the disk until others are written."""
    if windows := getattr(ctypes, "windll", None):
        from msvcrt import get_osfhandle  # type: ignore[attr-defined]  # there on Windows

        handle, returned = c_void_p(get_osfhandle(descriptor)), c_ulong()
        # A file system that knows no holes says so, and then they take their room.
        windows.kernel32.DeviceIoControl(handle, SET_SPARSE, None, 0, None, 0, ctypes.byref(returned), None)
    # Not truncated to its size: Windows would write all of the zeros.
    if size:
        write_at(descriptor, b"\0", size - 1)
