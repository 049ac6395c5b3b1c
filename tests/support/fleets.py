"""Flower's own tools on loopback: a SuperLink, its SuperNodes and flwr run, with their home and cache in a given folder."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
TOOLS = Path(sys.executable).parent
START_SECONDS, RUN_SECONDS = 120, 600
"""Hard limits: a stalled machine must not hang the suite."""

SMALL = {
    "dataset": "synthetic", "weights": "none", "max-examples": 160, "max-test-examples": 40, "width": 0.25, "resolution": 32,
    "rounds": 1, "batch-size": 8, "calibration": 16, "local-epochs": 1, "layers": 1, "budget": "100KB", "threads": 1,
    "method": "exact", "node-wait": 90,
}  # fmt: skip


def words(settings: dict) -> str:
    return " ".join(f"{key}='{value}'" if isinstance(value, str) else f"{key}={value}" for key, value in settings.items())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Fleet:
    """One SuperLink's processes; all of them and what they started are gone at the end."""

    def __init__(self, folder: Path, link: list[str], node: list[str]) -> None:
        self.folder, self.port = folder, free_port()
        self.node_options = node
        self.processes: list[subprocess.Popen] = []
        quiet = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "OMP_NUM_THREADS": "1"}
        self.environment = {
            **{key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
            **quiet, "PATH": f"{TOOLS}{os.pathsep}{os.environ['PATH']}", "FLWR_HOME": str(folder / "home"),
            "FEDACT_CACHE": str(folder / "cache"), "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        }  # fmt: skip
        self.start("superlink", ["flower-superlink", *link, "--host", "127.0.0.1", "--port", str(self.port)])
        self._wait_for_the_link()

    def start(self, name: str, command: list[str]) -> subprocess.Popen:
        log = (self.folder / f"{name}.log").open("w")
        process = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=self.folder, env=self.environment, start_new_session=True
        )
        self.processes.append(process)
        return process

    def node(self, name: str, config: str, *options: str) -> subprocess.Popen:
        address = ["--superlink", f"127.0.0.1:{self.port}", "--port", str(free_port()), "--max-retries", "10"]
        command = ["flower-supernode", *self.node_options, *address, "--node-config", config, *options]
        return self.start(name, command)

    def connect(self, **settings: str) -> None:
        lines = [f'address = "127.0.0.1:{self.port}"', *(f"{key.replace('_', '-')} = {v}" for key, v in settings.items())]
        (self.folder / "home").mkdir(exist_ok=True)
        text = '[superlink]\ndefault = "fleet"\n[superlink.fleet]\n' + "\n".join(lines) + "\n"
        (self.folder / "home" / "config.toml").write_text(text)

    def flwr(self, *arguments: str) -> str:
        command = ["flwr", *arguments]
        done = subprocess.run(
            command, capture_output=True, text=True, env=self.environment, cwd=self.folder, timeout=RUN_SECONDS, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def run(self, *options: str, **settings) -> str:
        given = words({**SMALL, **settings})
        return self.flwr("run", str(REPOSITORY), "fleet", "--stream", "--run-config", given, *options)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def stop(self) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            for process in self.processes:
                kill_group(process, number)
            end = time.monotonic() + 8
            while time.monotonic() < end and any(process.poll() is None for process in self.processes):
                time.sleep(0.1)

    def _wait_for_the_link(self) -> None:
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            assert self.processes[0].poll() is None, self.log("superlink")
            time.sleep(0.1)
        raise AssertionError(self.log("superlink"))


def kill_group(process: subprocess.Popen, number: int) -> None:
    """Signal a process and what it started; Flower's tools put no process into another group."""
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return


@contextmanager
def fleet(folder: Path, link: list[str], node: list[str]) -> Iterator[Fleet]:
    assert shutil.which("flower-superlink", path=str(TOOLS)), "flwr's tools lie beside the interpreter"
    started = Fleet(folder, link, node)
    try:
        yield started
    finally:
        started.stop()
