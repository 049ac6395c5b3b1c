"""One seed of a run: its experiment and plans, and the same ServerApp and ClientApp in any of the runtimes."""

import os
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from flwr.app import Context, RecordDict
from flwr.serverapp import Grid, ServerApp

from fedact.config.baselines import CENTRAL, WITHOUT_A_SERVER, baseline_of, method_of, with_baselines
from fedact.config.budgets import largest_budget
from fedact.config.errors import ConfigError
from fedact.config.plan import PlanKey, Plans, plans_from_json, plans_json
from fedact.config.schema import Config
from fedact.federation.header import check_partition, check_start, run_header
from fedact.federation.local_grid import RUN_ID, SERVER_NODE
from fedact.federation.plan_check import check_plan
from fedact.federation.plan_tasks import make_all_plans
from fedact.federation.planning import canonical_methods
from fedact.federation.ray_grid import RayGrid, check_ray
from fedact.federation.replanning import PlanBook
from fedact.federation.server import MethodRun, OnRound, run_method
from fedact.federation.shared_records import SharedRecords
from fedact.federation.worker_grid import WorkerGrid
from fedact.processes.pool import Workers
from fedact.storage.disk import write_whole
from fedact.storage.partition_csv import partition_csv, read_partition_bytes
from fedact.storage.run_folder import RunFolder
from fedact.training.experiment import Experiment
from fedact.training.shared_workspace import share_workspace
from fedact.training.threads import DEFAULT_THREADS
from fedact.training.workspace import workspace_of

OpenGrid = Callable[[Experiment], AbstractContextManager[Grid]]
"""Opens the grid that reaches the clients of an experiment, and closes it."""


class Simulation:
    """One seed of a run: its workspace, its plans by method, and the folder it writes to."""

    def __init__(
        self,
        config: Config,
        folder: RunFolder | None = None,
        done: dict[str, int] | None = None,
        workers: Workers | None = None,
    ) -> None:
        """Prepare a seed; done: each method's last finished round in the folder; workers: by default this process alone."""
        self.workers = workers or Workers(1)
        self.records = SharedRecords(self.workers)
        if config.runtime == "ray":
            check_ray(config)
        methods = canonical_methods(config)
        self.methods = with_baselines(methods, config.baseline)
        # Every process of the run computes with as many threads: another number gives other roundings.
        config = config.model_copy(update={"threads": config.threads or DEFAULT_THREADS})
        # The budgets are in bytes by now: a run that is repeated does not depend on the file of devices.
        self.key = config.model_dump_json(exclude={"out", "devices", "method", "baseline", "tensorboard", "workers"})
        self.workspace = workspace_of(self.key)
        share_workspace(self.workspace, self.key, self.workers)
        self.experiment = self.workspace.experiment
        settings: dict[str, Any] = {"method": tuple(methods), "baseline": config.baseline, "out": None}
        settings |= {"tensorboard": config.tensorboard, "workers": config.workers}
        self.config = self.experiment.config.model_copy(update=settings)
        self.folder = folder or RunFolder(Path())
        self.done = done or {}
        self.started = folder is not None and folder.records.exists()
        if self.started:
            self._check_partition()
            check_partition(self.folder.header(), self.experiment, self.folder.records)
            check_start(self.folder.header(), self.experiment, self.folder.records)
        known = self._plans_on_disk() if self.started else {}
        self.added = [method for method in self.methods if method not in known]
        missing = [method for method in self.added if baseline_of(method) is None]
        plans = known | make_all_plans(self.workspace, self.key, missing, self.workers)
        self.plans: dict[str, Plans] = {
            method: plans[method] if method in plans else baseline_plans(method, plans[method_of(method)])
            for method in self.methods
        }

    def _plans_on_disk(self) -> dict[str, Plans]:
        """Return the plans of a run on disk, replanned ones too; raises ConfigError where one is missing.

        A method that has neither plans nor rounds yet was added since.
        """
        plans = plans_from_json(self.folder.read_plans())
        known = [method for method in self.methods if method in plans or method in self.done]
        for method in known:
            for key in baseline_keys(method, map(PlanKey, self.config.client_budgets())):
                if key not in plans.get(method, {}):
                    raise ConfigError(f"{self.folder.plans} lacks the plan '{key}' of {method}")
            for key, plan in plans[method].items():
                check_plan(self.workspace, method_of(method), plan, f"{self.folder.plans}: the plan '{key}' of {method}")
        return {method: plans[method] for method in known}

    @cached_property
    def partition(self) -> str:
        """The text of partition.csv."""
        dealt = self.experiment.parts.whole
        return partition_csv(dealt.owners(), self.experiment.train.labels[dealt.order], self.experiment.client_names)

    def _check_partition(self) -> None:
        """Raise ConfigError where partition.csv on disk is another partition; an old run has no such file."""
        file = self.folder.partition
        if os.path.lexists(file) and read_partition_bytes(file) != self.partition.encode():
            raise ConfigError(f"{file} is not what the run's config deals to its clients: start another run")

    def open_folder(self, called_by: str | None = None) -> None:
        """Write config.toml, plans.json, partition.csv and the header row, as far as they are not there yet.

        called_by: the command that the header names, by default this process's.
        """
        if self.added:
            write_whole(self.folder.config, self.config.to_toml())
            write_whole(self.folder.plans, plans_json(self.plans))
        if not (self.started and self.folder.partition.exists()):
            write_whole(self.folder.partition, self.partition)
        if not self.started:
            header = run_header(
                self.config, self.experiment, self.config.client_budgets(), called_by or command(self.config)
            )
            self.folder.append([header])

    def run(self, on_round: OnRound, open_grid: OpenGrid | None = None) -> None:
        """Run every method's rounds that are not done; open_grid: by default as the config's runtime says."""
        app = ServerApp()

        @app.main()
        def main(grid: Grid, context: Context) -> None:
            for method in self.methods:
                book = PlanBook(method, self.workspace, self.folder, self.plans, self.key, self.workers)
                config = self.config
                if baseline_of(method) is not None:
                    config = config.model_copy(update=WITHOUT_A_SERVER)
                job = MethodRun(method, config, self.workspace, self.key, book, self.folder, on_round, self.records)
                run_method(grid, job, self.done.get(method))

        with open_grid(self.experiment) if open_grid else self._grid() as grid:
            app(grid, Context(RUN_ID, SERVER_NODE, {}, RecordDict(), {}))

    def _grid(self) -> AbstractContextManager[Grid]:
        """Return the grid of the config's runtime."""
        config = self.experiment.config
        if config.runtime == "ray":
            return RayGrid(config)
        return WorkerGrid(config, self.records, self.experiment.parts.sizes()[0].tolist())


def baseline_keys(name: str, keys: Iterable[PlanKey]) -> list[PlanKey]:
    """Return the keys of a method's plans that a baseline of it has too: before round 1, and of all in one place one."""
    first = [key for key in dict.fromkeys(keys) if key.first_round == 1]
    if baseline_of(name) != CENTRAL:
        return first
    return [PlanKey(largest_budget([key.budget_bytes for key in first]))]


def baseline_plans(name: str, plans: Plans) -> Plans:
    """Return the plans of a baseline: its method's, without copies that only a server asks for."""
    return {key: replace(plans[key], copy_bytes=0) for key in baseline_keys(name, plans)}


def command(config: Config) -> str:
    """Return the command line of the run; of a Flower run its name alone, as Flower's processes have keys as arguments."""
    return "flwr run ." if config.runtime == "flower" else " ".join(["python -m fedact.simulate", *sys.argv[1:]])
