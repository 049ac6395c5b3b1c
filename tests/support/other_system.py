"""Linux as another system would be: without what that lacks, and refusing what that refuses.

``python -m tests.support.other_system windows|macos`` reads a JSON list of {"arguments", "stop_after"} from stdin and runs
each as ``fedact.simulate`` would, stopped as by Ctrl-C after a round where one is given; the last line it prints is the list
of exit codes. What is simulated is the absence of functions and modules and Windows' refusals, not the systems themselves.
"""

import builtins
import importlib
import importlib.abc
import json
import os
import shutil
import sys
import warnings
from unittest import mock

LACKING = {
    "macos": ("sched_getaffinity", "posix_fallocate", "posix_fadvise", "fdatasync"),
    "windows": (
        "sched_getaffinity", "posix_fallocate", "posix_fadvise", "fdatasync", "O_DIRECTORY", "O_NOFOLLOW", "O_CLOEXEC",
        "O_NONBLOCK", "pread", "pwrite", "fork", "forkpty", "getuid", "geteuid", "getgid", "getegid", "killpg", "getpgid",
        "setsid", "mkfifo", "chown", "fchmod", "fchown", "uname", "sysconf", "nice", "getrusage",
    ),
}  # fmt: skip
POSIX_MODULES = ("fcntl", "resource", "pwd", "grp", "termios", "pty", "tty", "syslog", "readline")
O_BINARY = 0x8000
"""Linux ignores it."""


class Refusing(importlib.abc.MetaPathFinder):
    """Finds no module that Windows has not."""

    def find_spec(self, name, path=None, target=None):
        if name in POSIX_MODULES:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return


def become(system: str) -> None:
    """Take away from this process what the system lacks; for Windows, refuse what it refuses of files that are in use."""
    if system == "windows":
        sys.meta_path.insert(0, Refusing())
        for name in POSIX_MODULES:
            sys.modules.pop(name, None)
    # They ask for the name of the system, and find Linux.
    for name in ("flwr.serverapp", "matplotlib.figure", "pandas", "torchvision"):
        importlib.import_module(name)
    for name in LACKING[system]:
        if hasattr(os, name):
            delattr(os, name)
    if system == "windows":
        os.O_BINARY = O_BINARY  # type: ignore[attr-defined]
        shutil._use_fd_functions = False  # type: ignore[attr-defined]
        for name, files in {"replace": 2, "rename": 2, "unlink": 1, "remove": 1}.items():
            setattr(os, name, _refusing_files_in_use(getattr(os, name), files))
        os.open = _refusing_folders_and_text(os.open)


def _refusing_files_in_use(plain, files: int):
    def call(*arguments, **settings):
        for file in map(os.fspath, arguments[:files]):
            # Locks are filelock's, which has its own way on Windows.
            if not str(file).endswith(".lock") and is_in_use(str(file)):
                raise PermissionError(13, "The process cannot access the file because it is being used", file)
        return plain(*arguments, **settings)

    return call


def is_in_use(file: str) -> bool:
    """Return whether this process has the file open or mapped."""
    real = os.path.realpath(file)
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{descriptor}") == real:
                return True
        except OSError:
            continue
    with builtins.open("/proc/self/maps", encoding="utf-8") as maps:
        return any(line.rstrip("\n").endswith(f" {real}") for line in maps)


def _refusing_folders_and_text(plain):
    def call(file, flags, *arguments, **settings):
        if sys._getframe(1).f_globals.get("__name__", "").startswith("fedact"):
            if os.path.isdir(file):
                raise PermissionError(13, "Permission denied", file)
            assert flags & O_BINARY, f"{file} is opened as text"
        return plain(file, flags, *arguments, **settings)

    return call


def main() -> None:
    """Run the command lines of stdin."""
    steps = json.load(sys.stdin)
    become(sys.argv[1])
    warnings.filterwarnings("error", category=EncodingWarning, module=r"fedact\b")
    from fedact.federation import server
    from fedact.simulate import main as simulate
    from tests.support.stopping import stopping_after

    codes = []
    for step in steps:
        finish = server.PartialFedAvg.finish_round if step["stop_after"] is None else stopping_after(step["stop_after"])
        with mock.patch.object(server.PartialFedAvg, "finish_round", finish):
            codes.append(simulate(step["arguments"]))
    print(json.dumps(codes))


if __name__ == "__main__":
    main()
