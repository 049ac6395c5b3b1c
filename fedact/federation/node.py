"""A real device: what it says of itself in --node-config, and what it stands on. It takes no path from the server."""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from fedact.config.budgets import Budget, parse_budget, size_text
from fedact.config.code import absolute_code, code_label, is_code, names_code, split_code
from fedact.config.code_digests import code_digest
from fedact.config.code_imports import imported_code
from fedact.config.errors import ConfigError, unknown
from fedact.config.hub import hub_on_device, is_hub
from fedact.config.loading import make_config
from fedact.config.natural import natural_clients
from fedact.config.paths import cache_folder, expanded
from fedact.config.plan import Plan
from fedact.config.schema import Config
from fedact.data import Preprocessing
from fedact.storage import checkpoints
from fedact.training.workspace import Workspace, prepare_with, workspace_for

KEYS = ("partition-id", "num-partitions", "memory-budget", "data-dir", "own-code")
NOT_SENT = ("devices", "out", "ray_address", "workers", "data_dir", "weights", "pretrain_from", "method", "baseline")
"""What of a run's config is the server's own business, or a path on its disk."""
MOST_CACHED = 3
_NAME = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Node:
    """A node: which of how many partitions it holds, where its data lies, and its budget of one size, if one was given.

    own_code: what of the user's own code it may run.
    """

    partition: int
    partitions: int
    budget: Budget | None
    data_dir: Path | None
    own_code: tuple[str, ...] = ()

    def own(self, text: str, digest: str | None) -> str:
        """Return this node's name of code that an order names: its own, of the same name and from a file with this digest.

        Raises ConfigError where its --node-config names none such: an order runs no code here.
        """
        name = split_code(text)[0].rpartition(":")[2]
        for own in self.own_code:
            if own.rpartition(":")[2] == name and digest is not None and code_digest(own) == digest:
                return own
        raise ConfigError(
            f"the run has code of its own, {code_label(text)}: this node runs none but what its --node-config names as "
            f"own-code, and that is {', '.join(self.own_code) or 'none'} (due is a file of SHA-256 {str(digest)[:12]})"
        )

    def own_import(self, name: str, digest: str) -> str:
        """Return this node's name of a file with this digest that its own code imports, as the run's does.

        Raises ConfigError where it imports none such.
        """
        for own in self.own_code:
            for key, found in imported_code(own).items():
                if found == digest:
                    return key
        raise ConfigError(
            f"the run's code imports {Path(name).name}: this node's own-code imports no such file (due is one of SHA-256 "
            f"{digest[:12]})"
        )

    def own_plan(self, plan: Plan, digests: Mapping[str, str]) -> Plan:
        """Return an order's plan with this node's own names of the methods that are code.

        digests: of the run's code, by its names. Raises ConfigError where the node names none such.
        """

        def named(method: str) -> str:
            if not is_code(method):
                return method
            code, settings = split_code(method)
            return ":".join(filter(None, (self.own(code, digests.get(code)), settings)))

        kept = tuple(replace(each, method=named(each.method)) for each in plan.kept)
        return replace(plan, method=named(plan.method), kept=kept)

    def check(self, client: int, plan: Plan) -> None:
        """Raise ConfigError for an order that is another's, needs more than this node has, or runs code that is not its."""
        for text in {plan.method, *(kept.method for kept in plan.kept)}:
            if is_code(text) and split_code(text)[0] not in self.own_code:
                self.own(text, None)
        if client != self.partition:
            raise ConfigError(f"this node holds partition {self.partition}, the order is for {client}")
        size = self.budget.sizes[0] if self.budget else None
        if size is not None and (plan.budget_bytes is None or plan.budget_bytes > size):
            raise ConfigError(f"this node has {size:,} bytes, the plan is for {plan.budget_bytes or 'any number of'}")


def read_node(settings: Mapping[str, Any]) -> Node:
    """Return the node behind --node-config; raises ConfigError for what is missing, unknown or no such thing."""
    for key in settings:
        if key not in KEYS:
            raise unknown("key in --node-config", key, KEYS)
    partition, partitions = (_whole(settings, key) for key in KEYS[:2])
    if not 0 <= partition < partitions:
        raise ConfigError(f"--node-config: partition-id is {partition}, of num-partitions={partitions}")
    budget, given, data_dir = None, settings.get("memory-budget"), settings.get("data-dir")
    if text := "" if given is None else str(given):
        size, *others = parse_budget(text).sizes
        if others or ":" in text:
            raise ConfigError(
                f"--node-config: memory-budget is {text!r}: a node has one size, such as 64KB, none, or a device"
            )
        budget = parse_budget(size_text(size))
    own = tuple(absolute_code(text) for text in str(settings.get("own-code") or "").split())
    return Node(partition, partitions, budget, expanded(str(data_dir)) if data_dir else None, own)


def _whole(settings: Mapping[str, Any], key: str) -> int:
    value = settings.get(key)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ConfigError(f"--node-config: {key} is {'missing' if value is None else repr(value)}, it is a whole number")
    return value


def cached_weights() -> list[str]:
    """Return the digests of the initial weights that this device has on disk."""
    return [file.stem for file in _weights_folder().glob("*.safetensors") if _NAME.fullmatch(file.stem)]


def cache_weights(name: str, tensors: Mapping[str, Tensor]) -> None:
    """Write initial weights to disk under their digest, and delete all but the last few.

    Raises ConfigError where name is another digest.
    """
    if not tensors:
        return
    if checkpoints.digest(tensors) != name:
        raise ConfigError("the initial weights that came are not those that were announced")
    checkpoints.save(_weights_folder() / f"{name}.safetensors", tensors, private=True)
    kept = sorted(_weights_folder().glob("*.safetensors"), key=lambda file: file.stat().st_mtime)
    for file in kept[:-MOST_CACHED]:
        file.unlink(missing_ok=True)


def _weights_folder() -> Path:
    return cache_folder() / "starts"


def device_config(sent: str, node: Node) -> Config:
    """Return the run's config as this device has it: every path is its own, and never more threads than cores."""
    settings = {key: value for key, value in json.loads(sent).items() if key not in NOT_SENT}
    settings["weights"] = "pretrain" if json.loads(sent)["weights"] == "pretrain" else "none"
    settings["threads"] = min(settings.get("threads") or 1, os.cpu_count() or 1)
    settings["data_dir"] = node.data_dir
    digests = settings.get("code") or {}
    own = {text: (node.own if names_code(text) else node.own_import)(text, digest) for text, digest in digests.items()}
    settings["code"] = {own[text]: digest for text, digest in digests.items()} or None
    for key in ("model", "dataset"):
        if is_code(text := str(settings[key])):
            settings[key] = own[text] if text in own else node.own(text, None)
    if is_hub(str(settings["dataset"])):
        settings["dataset"] = hub_on_device(str(settings["dataset"]), node.data_dir)
    config = make_config(settings)
    if (rule := natural_clients(config.partition)) and rule.file is not None:
        raise ConfigError(f"partition {config.partition!r} names a file of the server's: this node takes no path from it")
    return config


def digests_of(sent: str) -> dict[str, str]:
    """Return the digests of the code of an order's run, by its names there."""
    return dict(json.loads(sent).get("code") or {})


def workspace_on(node: Node, sent: str, start: str, preprocessing: str) -> Workspace:
    """Return this device's workspace: the data in its own folder, dealt as the server deals it, and the server's weights."""
    if not _NAME.fullmatch(start):
        raise ConfigError(f"{start!r} is no digest of initial weights")

    def make() -> Workspace:
        tensors = checkpoints.load(_weights_folder() / f"{start}.safetensors")
        return prepare_with(device_config(sent, node), tensors, Preprocessing(**json.loads(preprocessing)))

    return workspace_for(f"{node} {start} {preprocessing} {sent}", make)
