"""Files written whole or not at all, also at a power cut."""

import os
import secrets
from pathlib import Path

from fedact.config.errors import ConfigError
from fedact.storage.system import create, make_private, open_to_append, replace, sync_folder

UNFINISHED = ".part"
"""The end of an unfinished file's name; it begins with a dot."""


def write_whole(file: Path, content: str | bytes, private: bool = False) -> None:
    """Write a file whole or not at all: under another name first, and on the disk before it takes the old one's place.

    private: its owner alone may read it.
    """
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(4)}{UNFINISHED}")
    try:
        # A new file, so that nobody's link is followed.
        with create(temporary) if private else temporary.open("xb") as opened:
            opened.write(content.encode() if isinstance(content, str) else content)
            opened.flush()
            os.fsync(opened.fileno())
        replace(temporary, file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(file.parent)


def read_bytes(file: Path) -> bytes:
    """Return a file's bytes; raises ConfigError where it cannot be read."""
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from None


def append_lines(file: Path, text: str) -> None:
    """Append whole lines to a file that is there; the last newline is written once all before it is on the disk.

    A disk may keep the end of a write and lose its middle: without its last newline, none of it counts.
    Raises OSError for a link.
    """
    with open(open_to_append(file), "ab") as opened:
        for part in (text.removesuffix("\n"), "\n"):
            opened.write(part.encode())
            opened.flush()
            os.fsync(opened.fileno())


def truncate(file: Path, length: int) -> None:
    """Drop what follows the first ``length`` bytes of a file."""
    with file.open("r+b") as opened:
        opened.truncate(length)
        os.fsync(opened.fileno())


def make_folder(folder: Path, private: bool = False) -> None:
    """Make a folder that outlasts a power cut; raises ConfigError where it cannot be made or written to.

    private: its owner alone may look into it.
    """
    try:
        new = [path for path in (folder, *folder.absolute().parents) if not path.exists()]
        make_private(folder) if private else folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be made: {error.strerror}") from None
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"{folder} may not be written to")
    for path in new:
        sync_folder(path.parent)


def unfinished_files(folder: Path) -> list[Path]:
    """Return the unfinished files that killed writers left in a folder."""
    return [path for path in folder.glob(f".*{UNFINISHED}") if path.is_file()]


def sweep(folder: Path, older_than: float = float("inf")) -> None:
    """Remove the unfinished files in a folder; older_than: those last written before this time (seconds since 1970)."""
    for path in unfinished_files(folder):
        if path.stat().st_mtime < older_than:
            path.unlink(missing_ok=True)
