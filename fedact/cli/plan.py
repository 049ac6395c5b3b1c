"""Plans in the terminal: the experiment's model and images, a plan for every budget and method, tables, a file, a figure."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import ceil, log2
from pathlib import Path

import numpy as np

from fedact.cli.console import show
from fedact.cli.flags import log_to_stderr
from fedact.cli.signals import catch_late
from fedact.config.code import is_code
from fedact.config.plan import Plan, PlanKey, plans_json
from fedact.config.schema import Config
from fedact.config.seeds import Purpose, generator
from fedact.data import Loader
from fedact.federation.plan_tasks import make_each
from fedact.federation.planning import calibration_batch, canonical_methods
from fedact.federation.worker_grid import PRELOAD, cores
from fedact.measure.plan_cost import input_costs, step_time
from fedact.measure.step import Batch
from fedact.models import SCALABLE
from fedact.models.initialization import SMALL_RESOLUTION
from fedact.nn.surgery import count_text
from fedact.processes.pool import Workers
from fedact.reports.method_label import method_label
from fedact.reports.plan.figures import plans_against_budget
from fedact.reports.plan.tables import PlanReport, budgeted_bytes, summary, tensor_table, title
from fedact.reports.safe_text import escaped
from fedact.reports.style import png
from fedact.storage.disk import write_whole
from fedact.training.experiment import check_names
from fedact.training.shared_workspace import share_workspace
from fedact.training.workspace import Workspace, close_workspaces, prepare, workspace_for

ALONE = {"clients": 1, "partition": "iid"}
"""Nothing is federated here."""
FULL_WIDTH = 1.0
"""A plan is asked for about the network that a device gets, not about a small one that digits are enough for."""
TIMED = 3
"""Steps whose time is measured."""
BASELINE = "exact"
HALVINGS = DOUBLINGS = 3
"""How far the figure's budgets go below and above those that were asked for."""

log = logging.getLogger(__name__)

FEW_PLANS = 4
"""So many are made by this process alone: others would import for longer than they would save."""


@dataclass(frozen=True, eq=False)
class Maker:
    """Makes a plan for a method and a budget in bytes, each once; and several at the same time, where there are workers.

    key: by which they find the workspace.
    """

    workspace: Workspace
    key: str
    workers: Workers
    plans: dict[tuple[str, int | None], Plan] = field(default_factory=dict)

    def __call__(self, method: str, budget: int | None) -> Plan:
        self.make([(method, budget)])
        return self.plans[method, budget]

    def make(self, wanted: Sequence[tuple[str, int | None]]) -> None:
        """Make the plans that are not made yet."""
        missing = [each for each in dict.fromkeys(wanted) if each not in self.plans]
        if missing:
            self.plans.update(make_each(self.workspace, self.key, missing, self.workers))


@dataclass(frozen=True)
class Options:
    """The flags of the command beside those of Config."""

    json: Path | None
    figure: Path | None


def show_plans(config: Config, options: Options) -> int:
    """Make a plan for every method and distinct budget, print what it keeps and costs, write the files."""
    catch_late()
    log_to_stderr()
    methods, budgets = canonical_methods(config), list(dict.fromkeys(config.budget.sizes))
    wanted = [(method, size) for method in methods for budget in budgets for size in _sizes(budget)]
    with Workers(cores() if options.figure or len(wanted) > FEW_PLANS else 1, preload=PRELOAD) as workers:
        workspace, key = prepared(config), f"plan {config.model_dump_json(exclude={'devices'})}"
        make = Maker(workspace, key, workers)
        if workers.count > 1:
            close_workspaces()
            share_workspace(workspace_for(key, lambda: workspace), key, workers)
            make.make(wanted)
        _show(make, methods, budgets, options)
    return 0


def _sizes(budget: int | None) -> list[int | None]:
    """Return the budgets to make plans for, to show one: twice as much too."""
    return [None] if budget is None else [budget, 2 * budget]


def _show(make: Maker, methods: list[str], budgets: list[int | None], options: Options) -> None:
    workspace, experiment = make.workspace, make.workspace.experiment
    example = calibration_batch(experiment)
    print(escaped(title(experiment.config)))
    for method in methods:
        for budget in budgets:
            report = _report(workspace, make, example, method, budget)
            size = "no budget" if budget is None else f"{budget:,} {report.plan.scope} bytes"
            print(f"\n{method_label(report.plan.method)}, {size}: {report.plan.status}")
            show(*([tensor_table(report.plan, report.parts)] if report.parts else []), prose=True)
            show(summary(report), prose=True)
    plans = {method: {PlanKey(budget): make(method, budget) for budget in budgets} for method in methods}
    if options.json:
        write_whole(options.json, plans_json(plans))
    if options.figure:
        ladders = _ladders(make, methods, budgets)
        figure = plans_against_budget(title(experiment.config), ladders, [size for size in budgets if size])
        write_whole(options.figure, png(figure))


def prepared(config: Config) -> Workspace:
    """Prepare the model at full width; what is pretrained here is so at few pixels.

    A plan asks for the activations of a trained network, not for accuracy: those of a random one are far simpler, so that
    less would seem to be enough. At 224 pixels pretraining takes minutes.
    """
    check_names(config)
    width = config.width or (FULL_WIDTH if config.model in SCALABLE else None)
    # A learning rate alone is not worth a trial here: no plan is another for it.
    lr = config.lr if config.layers == "auto" else config.usual_lr
    config = config.model_copy(update={"width": width, "lr": lr, **ALONE})
    wanted = config.resolution or SMALL_RESOLUTION
    # A network of the user's own may be another at fewer pixels.
    fixed = config.task == "segmentation" or is_code(config.model)
    if config.weights != "pretrain" or wanted <= SMALL_RESOLUTION or fixed:
        return prepare(config)
    small = prepare(config.model_copy(update={"resolution": SMALL_RESOLUTION}), side=wanted)
    whole = small.experiment.config.model_copy(update={"resolution": wanted})
    preprocessing = replace(small.experiment.preprocessing, resolution=wanted, resize=wanted)
    return Workspace(replace(small.experiment, config=whole, preprocessing=preprocessing), small.model)


def _ladders(make: Maker, methods: list[str], budgets: list[int | None]) -> dict[str, list[Plan]]:
    """Return each method's plans at powers of two around the budgets; around an unbounded plan's bytes without a budget."""
    sizes = [size or budgeted_bytes(make(methods[0], None)) or 1 for size in budgets]
    rungs = {*sizes, *ladder(min(sizes), max(sizes))}
    names = list(dict.fromkeys([*methods, BASELINE]))
    log.info(f"the figure: plans for {len(rungs)} budgets, each with {', '.join(names)}")
    make.make([(method, rung) for method in names for rung in sorted(rungs)])
    return {method: [make(method, rung) for rung in sorted(rungs)] for method in names}


def ladder(least: int, most: int) -> list[int]:
    """Return sizes from an eighth of the least, each twice the one before, to at least eight times the most."""
    first = max(1, least >> HALVINGS)
    steps = ceil(log2((most << DOUBLINGS) / first))
    return [first << step for step in range(steps + 1)]


def _report(workspace: Workspace, make: Maker, example: Batch, method: str, budget: int | None) -> PlanReport:
    plan = make(method, budget)
    trains = plan.status != "skipped"
    model, experiment = workspace.model_with({}), workspace.experiment
    config = experiment.config
    # A batch to warm up and those that are timed, each drawn anew from the server's examples.
    loader = Loader(experiment.calibration, experiment.preprocessing, config.device)
    random = generator(config.seed, Purpose.CALIBRATION, client=2)
    timed = [loader(np.resize(random.permutation(len(loader)), config.batch_size)) for _ in range(1 + TIMED)]
    return PlanReport(
        plan=plan,
        parts=tuple(input_costs(model, plan, example[0])) if trains else (),
        time=step_time(workspace.model_with({}), plan, timed, config.train_norm) if trains else None,
        more=None if budget is None else make(method, 2 * budget),
        body_layers=count_text(model),
    )
