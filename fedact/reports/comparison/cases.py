"""Several runs side by side: a case for every method of every run, differences of settings, and unreadable parts."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedact.config.baselines import baseline_of, method_of, with_baselines
from fedact.config.errors import ConfigError
from fedact.config.spec import spelled
from fedact.config.toml import read_table
from fedact.reports.comparison.comparable import (
    check_another_seed,
    check_header,
    differences_that_matter,
    note_on_test_set,
)
from fedact.reports.method_label import method_label
from fedact.reports.style import as_baseline, case_styles
from fedact.storage.rows import SCORE_NAMES, Row, task_of
from fedact.storage.run import Run, make_run, run_folders
from fedact.storage.run_folder import RunFolder

if TYPE_CHECKING:
    import pandas as pd

FREE = (
    "out", "seed", "seeds", "method", "baseline", "devices", "cache_size", "ray_address", "runtime", "tensorboard",
    "threads", "data_dir",
)  # fmt: skip
"""Settings that tell no two experiments apart."""
MOST_SETTINGS = 4
"""Settings in a label at most; the table of differences has all."""


@dataclass(frozen=True, eq=False)
class Case:
    """One method of one run, all of its seeds.

    label: the method, with what tells this run from others that have the same one. plans: as they stand in plans.json.
    """

    label: str
    method: str
    run: Run
    rounds: "pd.DataFrame"
    clients: "pd.DataFrame"
    plans: dict[str, Row]

    @property
    def recompute(self) -> int | None:
        """How many convolutions back its clients made inputs again from, at most; None of a run that does not say."""
        return max((plan["recompute"] for plan in self.plans.values() if plan.get("recompute") is not None), default=None)

    @property
    def baseline(self) -> str | None:
        """The baseline that it is of its method, None for the method itself."""
        return baseline_of(self.method)

    @property
    def is_to_mark(self) -> bool:
        """Whether its clients made anything again and its method's name does not say so."""
        return bool(self.recompute) and "derive=" not in self.method and not method_of(self.method).startswith("checkpoint")

    @property
    def seeds(self) -> list[int]:
        return sorted(int(seed) for seed in self.rounds["seed"].unique())


@dataclass(frozen=True, eq=False)
class Comparison:
    """Runs side by side.

    cases: in the order of the runs. notes: what is not whole. refused: what could not be read. differing: by run, the
    settings that are not the same in all of them.
    """

    cases: list[Case]
    notes: list[str]
    refused: list[str]
    differing: dict[str, dict[str, str]]

    @property
    def runs(self) -> list[Run]:
        return list(dict.fromkeys(case.run for case in self.cases))

    @property
    def score_name(self) -> str:
        """Name of every case's score: accuracy, or mean IoU."""
        return score_of(self.cases)

    def incomparable(self) -> list[str]:
        """Return what keeps scores from being compared, where it differs: settings, or the test set."""
        return differences_that_matter([run.headers[0] for run in self.runs])


def compare_runs(paths: Iterable[str | Path]) -> Comparison:
    """Return the comparison of the runs in these folders; unreadable ones are messages in its ``refused``.

    Raises ConfigError for runs of different tasks: their scores are not the same figure.
    """
    runs, notes, refused = [], [], []
    for path in dict.fromkeys(map(Path, paths)):
        run, run_notes, run_refused = _read(path)
        notes += run_notes
        refused += run_refused
        if run is not None:
            runs.append(run)
    for run in runs[1:]:
        task, first = task_of(run.config), task_of(runs[0].config)
        if task != first:
            raise ConfigError(f"{runs[0].path} is a run of {first} and {run.path} one of {task}: compare them one by one")
    differing = differences(runs)
    cases = [case for run in runs for case in _cases(run, runs, differing[str(run.path)])]
    count = Counter(case.label for case in cases)
    cases = [
        case if count[case.label] == 1 else replace(case, label=f"{method_label(case.method)} ({case.run.path})")
        for case in cases
    ]
    return Comparison(cases, notes, refused, differing if any(differing.values()) else {})


def styles_of(cases: Sequence[Case]) -> list[dict[str, Any]]:
    """Return each case's line: a baseline has the colour of its run's method, thin and broken, with a mark of its own."""
    keys = [(case.run, method_of(case.method)) for case in cases]
    methods = list(dict.fromkeys(keys))
    styles = case_styles(len(methods))
    return [as_baseline(styles[methods.index(key)], case.baseline) for key, case in zip(keys, cases, strict=True)]


def score_of(cases: Sequence[Case]) -> str:
    """Return the name of these cases' score; they are all of one task."""
    return next((case.run.score_name for case in cases), SCORE_NAMES["classification"])


def _read(path: Path) -> tuple[Run | None, list[str], list[str]]:
    """Return a run of its readable seeds (None without any), notes on unfinished parts, and errors of unreadable ones."""
    notes: list[str] = []
    refused: list[str] = []
    try:
        folders = run_folders(path)
    except ConfigError as error:
        return None, [], [str(error)]
    rows: list[Row] = []
    plans: dict[str, dict[str, Row]] = {}
    for folder in folders:
        try:
            seed_rows = folder.rows()
            check_header(seed_rows, folder.records)
            check_another_seed(seed_rows, rows, folder.records)
            rows += seed_rows
        except ConfigError as error:
            refused.append(str(error))
            continue
        try:
            plans = plans or folder.read_plans()
        except ConfigError as error:
            notes.append(f"{error}; what plans say is missing")
    if not any(row["kind"] == "round" for row in rows):
        return None, notes, refused or [f"{path} holds no finished round"]
    run = make_run(path, rows, plans)
    return run, [*notes, *note_on_test_set(run.headers[0], path), *_unfinished(run, folders)], refused


def _unfinished(run: Run, folders: Sequence[RunFolder]) -> Iterable[str]:
    """Yield a line for each method, seed and number of seeds that a run has not finished."""
    for row in run.headers:
        seed, rounds = row["config"].get("seed"), row["config"].get("rounds")
        done = run.rounds[run.rounds["seed"] == seed].groupby("method")["round"].max().to_dict()
        asked = with_baselines(row["config"].get("method", ()), row["config"].get("baseline") or ())
        for method in dict.fromkeys([*asked, *done]):
            last = done.get(method)
            if rounds is not None and (last is None or last < rounds):
                has = "has not begun" if last is None else f"is at round {last} of {rounds}"
                yield f"{run.path} is not finished: {method_label(method)}, seed {seed}, {has}"
    try:
        # How many seeds there will be stands in config.toml beside their folders, not in their own headers.
        seeds = read_table("config", run.path / "config.toml").get("seeds")
    except ConfigError:
        # A comparison needs nothing else from it.
        return
    if isinstance(seeds, int) and seeds > len(folders):
        yield f"{run.path} is not finished: {len(folders)} of {seeds} seeds have begun"


def differences(runs: Sequence[Run]) -> dict[str, dict[str, str]]:
    """Return for each run the settings that are not the same in all runs; empty for one run."""
    names = dict.fromkeys(name for run in runs for name in run.config if name not in FREE)
    values = {name: {_written(run.config.get(name)) for run in runs} for name in names}
    return {str(run.path): {name: _written(run.config.get(name)) for name in names if len(values[name]) > 1} for run in runs}


def _written(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else spelled(value)


def _cases(run: Run, runs: Sequence[Run], differing: dict[str, str]) -> Iterable[Case]:
    """Yield a run's cases, with the rounds of the seeds that have come farthest: others would blur their mean."""
    # Two cases of one name need more to be told apart, and then all others say the same of themselves.
    names = [method for other in runs for method in other.rounds["method"].unique()]
    settings = [f"{name.replace('_', ' ')} {value}" for name, value in differing.items()]
    said = ", ".join(settings) if 0 < len(settings) <= MOST_SETTINGS else run.path.name
    for method, every in run.rounds.groupby("method", sort=False):
        last = every.groupby("seed")["round"].max()
        rounds = every[every["seed"].isin(last[last == last.max()].index)]
        clients = run.clients[(run.clients["method"] == method) & run.clients["seed"].isin(rounds["seed"])]
        shown = method_label(method)
        label = f"{shown} ({said})" if len(set(names)) < len(names) else shown
        case = Case(label, str(method), run, rounds, clients, run.plans.get(str(method), {}))
        yield replace(case, label=f"{label} + recompute {case.recompute}") if case.is_to_mark else case
