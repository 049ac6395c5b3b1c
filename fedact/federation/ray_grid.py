"""The same messages on Ray, through the backend of Flower's simulation engine; what it touches that is private, tests name.

Flower's own entry, ``run_simulation``, is deprecated, runs the ServerApp in a thread that Ctrl-C does not reach, and looks
for replies every 0.1 seconds. Its backend is what it is made of: one pool of Ray actors that answer messages.
"""

import logging
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from flwr.app import Context, Message

from fedact.config.environment import RAY, set_defaults
from fedact.config.errors import ConfigError, check_extra
from fedact.config.schema import Config
from fedact.federation import client
from fedact.federation.local_grid import LocalGrid, answer, failure
from fedact.processes.handover import Handed, packed, receive

Answer = Callable[[Message, Context], Message]
Loader = Callable[[], Answer]

CONNECT_SECONDS = 10.0
RESTARTS = 3
"""How often a worker that died (out of memory, say) is started again."""
NOT_STARTED = "The actor is restarting"
"""What Ray says of a message that never reached its worker; one that was under way when its worker died is lost."""
RESTART_SECONDS, PAUSE_SECONDS = 60.0, 0.2


def check_ray(config: Config) -> None:
    """Raise ConfigError where Ray is not installed or cannot run what the config says."""
    check_extra("ray", "--runtime ray")
    if config.ray_address not in (None, "auto"):
        check_listens(str(config.ray_address))
    if ":" in config.device:
        raise ConfigError(f"--device {config.device}: Ray gives each worker a GPU of its own; with --runtime ray write cuda")


def check_listens(address: str) -> None:
    """Raise ConfigError where nothing listens at host:port: Ray itself would try for minutes."""
    host, colon, port = address.rpartition(":")
    if not (host and colon and port.isdigit() and 0 < int(port) < 2**16):
        raise ConfigError(f"--ray-address is {address!r}: it is auto or HOST:PORT")
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except OSError as error:
        raise ConfigError(f"--ray-address {address}: no Ray cluster answers there ({error})") from None


def backend_config(config: Config) -> dict[str, dict[str, Any]]:
    """Return what Flower's backend is told: where Ray is, and what a client takes of it."""
    resources = {"num_cpus": config.threads or 1, "num_gpus": float(config.device != "cpu"), "max_restarts": RESTARTS}
    init = {"address": config.ray_address or "local", "logging_level": "ERROR", "log_to_driver": False}
    return {"init_args": init, "client_resources": resources, "actor": {}}


def answer_in_worker(message: Message, context: Context) -> Message:
    """Answer a message in a Ray worker, whose modules and experiment stay for the next one."""
    return answer(client.app, message, context)


def load_app(handed: tuple[Handed, ...] = ()) -> Answer:
    """Return what answers messages; Ray sends this function by its name, with the code that is in no file."""
    receive(handed)
    return answer_in_worker


class RayGrid(LocalGrid):
    """Sends each message to a worker that is free; replies are yielded in the order of the messages."""

    def __init__(self, config: Config, load: Loader | None = None) -> None:
        super().__init__(client.app, config.fleet_size)
        self.backend = start_backend(config, load or partial(load_app, packed(config.code or ())))
        self.workers = list(self.backend.pool.pool)
        # The backend takes one message a worker at a time.
        self.senders = ThreadPoolExecutor(self.backend.num_workers)

    def __exit__(self, *_: object) -> None:
        """Stop the workers, whatever they are at."""
        import ray

        # The backend's own end stops idle workers only: who waits for a busy one would wait for ever, and Python for him.
        for worker in self.workers:
            ray.kill(worker)
        self.senders.shutdown(cancel_futures=True)
        ray.shutdown()

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Yield the replies in the order of the messages, so that what is made of them is the same in every run."""
        yield from self.senders.map(self.reply, messages)

    def reply(self, message: Message) -> Message:
        reply: Message
        end = time.monotonic() + RESTART_SECONDS
        while True:
            try:
                reply, _ = self.backend.process_message(message, self.context_of(message))
            except Exception as error:  # the worker itself died
                if NOT_STARTED not in str(error) or time.monotonic() > end:
                    return failure(message, f"{type(error).__name__}: {str(error).splitlines()[0]}")
                time.sleep(PAUSE_SECONDS)
            else:
                return reply


def start_backend(config: Config, load: Loader) -> Any:
    """Return Flower's Ray backend with its workers; raises ConfigError where there is no such cluster or no room in it."""
    check_ray(config)
    set_defaults(RAY)
    import ray
    from flwr.server.superlink.fleet.vce.backend.raybackend import RayBackend

    # What goes wrong is said by rows and errors.
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    try:
        backend = RayBackend(backend_config(config))
        backend.build(load)  # type: ignore[arg-type]
    except (ConnectionError, ValueError, RuntimeError) as error:
        ray.shutdown()
        raise ConfigError(_refusal(config, error)) from None
    return backend


def _refusal(config: Config, error: Exception) -> str:
    if isinstance(error, ConnectionError):
        return f"--ray-address {config.ray_address}: no Ray cluster answers there"
    if "ActorPool is empty" in str(error):
        gpu = " and a GPU" if config.device != "cpu" else ""
        return f"--threads {config.threads}: no machine of the Ray cluster has so many cores{gpu} for one client"
    return f"Ray does not start: {str(error).splitlines()[0]}"
