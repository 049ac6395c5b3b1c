"""The app for Flower's own tools: ``flwr run .`` on a simulated fleet, or on a SuperLink whose SuperNodes are real devices.

What imports torch is imported where it is needed: a node says what it holds in a second.
"""

import logging
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedact.cli.flags import log_to_stderr
from fedact.config.errors import ConfigError, unknown
from fedact.config.loading import make_config, read_toml
from fedact.config.natural import natural_clients
from fedact.config.own_code import with_code
from fedact.config.paths import expanded
from fedact.config.schema import SETTINGS, Config

NODE_WAIT, RESUME = "node-wait", "resume"
NOT_HERE = ("runtime", "ray_address", "workers", "baseline")
"""Fields of Config that mean nothing to ``flwr run``."""

Answer = Callable[[Message, Context], Message]

log = logging.getLogger(__name__)
server_app = ServerApp()
client_app = ClientApp()


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """Run what the run config says on the nodes that are there."""
    log_to_stderr()
    quieten(logging.getLogger("flwr"))
    try:
        run(grid, context.run_config)
    except ConfigError as error:
        log.error("fedact: %s", error)
        raise


def quieten(flower: logging.Logger) -> None:
    """Leave out what Flower logs of every round, which the run's own lines say, and the traceback of a user's error."""
    # It has a handler of its own.
    flower.propagate = False
    flower.setLevel(logging.WARNING)
    flower.addFilter(without_traceback)


def without_traceback(record: logging.LogRecord) -> bool:
    """Take the traceback off a ConfigError's record: it is said in one line already."""
    if record.exc_info and isinstance(record.exc_info[1], ConfigError):
        record.exc_info = None
    return True


def run(grid: Grid, settings: Mapping[str, Any]) -> int:
    """Start or resume a run on the grid's nodes and return the exit code of a session."""
    from fedact.cli.simulate import resume_run, start_run
    from fedact.config.folder import default_folder
    from fedact.federation.fleet import Fleet

    config, resume = read_run_config(settings)
    check_partition(config)
    fleet = Fleet(grid, config.fleet_size)
    if resume:
        fleet.planned_budgets = config.client_budgets()
    seconds = settings.get(NODE_WAIT)
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < float("inf"):
        raise ConfigError(f"{NODE_WAIT} is {seconds!r}: it is a number of seconds")
    fleet.wait(float(seconds))
    if resume:
        return resume_run(resume, fleet.open)
    config = fleet.config(with_code(config))
    return start_run(config, (config.out or default_folder(config)).absolute(), fleet.open)


def read_run_config(settings: Mapping[str, Any]) -> tuple[Config, Path | None]:
    """Return the config behind a run config, and the folder of a run to go on with, whose own config it then is.

    An empty text is what was not given; several methods are written with spaces between them.
    """
    for key in settings:
        if key not in run_config_keys():
            raise unknown("key in the run config", key, run_config_keys())
    if resume := str(settings.get(RESUME) or ""):
        folder = expanded(resume)
        if not (folder / "config.toml").is_file():
            raise ConfigError(f"resume={resume!r}: there is no run, {folder / 'config.toml'} does not exist")
        return make_config(read_toml(folder / "config.toml")), folder
    given = {key.replace("-", "_"): value for key, value in settings.items() if value != ""}
    for key in (NODE_WAIT, RESUME):
        given.pop(key.replace("-", "_"), None)
    if "method" in given:
        given["method"] = tuple(str(given["method"]).split())
    return make_config({**given, "runtime": "flower"}), None


def check_partition(config: Config) -> None:
    """Raise ConfigError for a natural partition that nodes cannot know: they take no path from the server."""
    rule = natural_clients(config.partition)
    if rule and rule.file is not None:
        raise ConfigError(f"partition={config.partition!r}: a node takes no path from the server")
    if config.clients is None:
        raise ConfigError(f"partition={config.partition!r}: clients says how many of its clients have a node")


def run_config_keys() -> list[str]:
    """Return the keys that a run config may have; pyproject.toml has them all."""
    fields = [name.replace("_", "-") for name in SETTINGS if name not in NOT_HERE]
    return [*fields, NODE_WAIT, RESUME]


def errors_as_replies(act: Answer) -> Answer:
    """Return an answer to messages that never raises: what ``act`` raises is logged here and the reply's error there."""

    @wraps(act)
    def answer(message: Message, context: Context) -> Message:
        from fedact.federation.local_grid import failure

        try:
            return act(message, context)
        except Exception as error:
            reason = str(error) if isinstance(error, ConfigError) else f"{type(error).__name__}: {error}"
            log.error("fedact: %s", reason)
            return failure(message, reason)

    return answer


@client_app.query()
@errors_as_replies
def query(message: Message, context: Context) -> Message:
    """Reply with this node's partition, memory budget, and the digests of the initial weights that it has on disk."""
    from fedact.federation.node import cached_weights, read_node

    node = read_node(context.node_config)
    description = {
        "partition": node.partition,
        "partitions": node.partitions,
        "budget": str(node.budget or ""),
        "starts": cached_weights(),
    }
    return Message(RecordDict({"node": ConfigRecord(description)}), reply_to=message)  # type: ignore[arg-type]


@client_app.train()
@errors_as_replies
def train(message: Message, context: Context) -> Message:
    """Train this node's own partition for a round."""
    from fedact.config.plan import Plan
    from fedact.federation.client import train_on
    from fedact.federation.client_mods import with_mods
    from fedact.federation.node import cache_weights, digests_of, read_node, workspace_on

    node, order, start = read_node(context.node_config), message.content["config"], message.content["start"]
    assert isinstance(order, ConfigRecord)
    assert isinstance(start, ArrayRecord)
    plan = node.own_plan(Plan.from_json(str(order["plan"])), digests_of(str(order["experiment"])))
    node.check(int(order["client"]), plan)  # type: ignore[arg-type]
    order["plan"] = plan.to_json()
    cache_weights(str(order["start"]), start.to_torch_state_dict())
    workspace = workspace_on(node, str(order["experiment"]), str(order["start"]), str(order["preprocessing"]))
    return with_mods(lambda order, _: train_on(workspace, order))(message, context)
