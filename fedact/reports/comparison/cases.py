"""Several runs side by side: what could be read, what differs, and a case for every method of every run."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedact.config.errors import ConfigError
from fedact.config.spec import spelled
from fedact.config.toml import read_table
from fedact.reports.comparison.comparable import SAME, check_another_seed, check_header
from fedact.storage.rows import SCORE_NAMES, Row, task_of
from fedact.storage.run import Run, make_run, run_folders
from fedact.storage.run_folder import RunFolder

if TYPE_CHECKING:
    import pandas as pd

OWN = (
    "out",
    "seed",
    "seeds",
    "method",
    "devices",
    "cache_size",
    "ray_address",
    "runtime",
    "tensorboard",
    "threads",
    "data_dir",
)
"""Settings that tell no two experiments apart."""
MOST_SETTINGS = 4
"""In a name; the table of what differs has all."""


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
    def seeds(self) -> list[int]:
        return sorted(int(seed) for seed in self.rounds["seed"].unique())


@dataclass(frozen=True, eq=False)
class Comparison:
    """What was found: cases in the order of the runs, what is not whole, what could not be read, and what differs.

    differing: by run, the settings that are not the same in all of them.
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
        """What the score of every case is called."""
        return score_of(self.cases)

    def not_the_same(self) -> list[str]:
        """Return the settings that keep scores from being compared, where they differ."""
        return [name for name in SAME if len({str(run.config.get(name)) for run in self.runs}) > 1]


def compare_runs(paths: Iterable[str | Path]) -> Comparison:
    """Read the runs in these folders; what cannot be read is said, and the rest is there.

    Raises ConfigError for runs of different tasks: their scores are not the same figure.
    """
    runs, notes, refused = [], [], []
    for path in dict.fromkeys(map(Path, paths)):
        run, own_notes, own_refused = _read(path)
        notes += own_notes
        refused += own_refused
        if run is not None:
            runs.append(run)
    _check_one_task(runs)
    differing = differences(runs)
    cases = _told_apart([case for run in runs for case in _cases(run, runs, differing[str(run.path)])])
    return Comparison(cases, notes, refused, differing if any(differing.values()) else {})


def score_of(cases: Sequence[Case]) -> str:
    """Return what the score of these cases is called: they are all of one task."""
    return next((case.run.score_name for case in cases), SCORE_NAMES["classification"])


def _check_one_task(runs: Sequence[Run]) -> None:
    """Raise ConfigError where one run classifies and another segments."""
    for run in runs[1:]:
        own, first = task_of(run.config), task_of(runs[0].config)
        if own != first:
            raise ConfigError(f"{runs[0].path} is a run of {first} and {run.path} one of {own}: compare them one by one")


def _read(path: Path) -> tuple[Run | None, list[str], list[str]]:
    """Return a run with its readable seeds, what is not whole in it, and what could not be read."""
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
            own = folder.rows()
            check_header(own, folder.records)
            check_another_seed(own, rows, folder.records)
            rows += own
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
    return run, notes + list(_unfinished(run, folders)), refused


def _unfinished(run: Run, folders: Sequence[RunFolder]) -> Iterable[str]:
    """Yield what a run that was stopped, or goes on at this moment, has not done yet."""
    for row in run.headers:
        seed, rounds = row["config"].get("seed"), row["config"].get("rounds")
        own = run.rounds[run.rounds["seed"] == seed]
        done = own.groupby("method")["round"].max().to_dict()
        for method in dict.fromkeys([*row["config"].get("method", ()), *done]):
            last = done.get(method)
            if rounds is not None and (last is None or last < rounds):
                has = "has not begun" if last is None else f"is at round {last} of {rounds}"
                yield f"{run.path} is not finished: {method}, seed {seed}, {has}"
    if (wanted := _seeds_wanted(run)) > len(folders):
        yield f"{run.path} is not finished: {len(folders)} of {wanted} seeds have begun"


def _seeds_wanted(run: Run) -> int:
    """Return how many seeds a run is to have: config.toml beside their folders says it, the seeds' own headers do not."""
    try:
        wanted = read_table("config", run.path / "config.toml").get("seeds")
    except ConfigError:
        # A comparison needs nothing else from it.
        return 1
    return wanted if isinstance(wanted, int) else 1


def differences(runs: Sequence[Run]) -> dict[str, dict[str, str]]:
    """Return for each run the settings that are not the same in all runs; empty for one run."""
    names = dict.fromkeys(name for run in runs for name in run.config if name not in OWN)
    values = {name: {_written(run.config.get(name)) for run in runs} for name in names}
    return {str(run.path): {name: _written(run.config.get(name)) for name in names if len(values[name]) > 1} for run in runs}


def _cases(run: Run, runs: Sequence[Run], own: dict[str, str]) -> list[Case]:
    # Two cases of one name need more to be told apart, and then all others say the same of themselves.
    named = [method for each in runs for method in each.rounds["method"].unique()]
    alike = len(set(named)) < len(named)
    return [
        Case(
            _label(str(method), run, own) if alike else str(method),
            str(method),
            run,
            rounds,
            run.clients[(run.clients["method"] == method) & run.clients["seed"].isin(rounds["seed"])],
            run.plans.get(str(method), {}),
        )
        for method, every in run.rounds.groupby("method", sort=False)
        for rounds in [_farthest(every)]
    ]


def _told_apart(cases: list[Case]) -> list[Case]:
    """Return the cases, those that still have another's label with their run's path."""
    count = Counter(case.label for case in cases)
    return [case if count[case.label] == 1 else replace(case, label=f"{case.method} ({case.run.path})") for case in cases]


def _farthest(rounds: "pd.DataFrame") -> "pd.DataFrame":
    """Return the rounds of the seeds that have come farthest: a mean with those still on their way says nothing."""
    last = rounds.groupby("seed")["round"].max()
    return rounds[rounds["seed"].isin(last[last == last.max()].index)]


def _label(method: str, run: Run, own: dict[str, str]) -> str:
    """Return the method with the run's own settings, or its folder where there are none, or too many for a name."""
    settings = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in own.items() if len(own) <= MOST_SETTINGS)
    return f"{method} ({settings or run.path.name})"


def _written(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else spelled(value)
