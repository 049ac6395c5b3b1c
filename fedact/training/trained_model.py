"""The trained model of a finished run, from its last checkpoint."""

from torch import Tensor, nn

from fedact.config.baselines import LOCAL, baseline_of
from fedact.config.errors import ConfigError
from fedact.config.loading import make_config
from fedact.nn.adaptation import initial
from fedact.storage import checkpoints
from fedact.storage.run import Run, run_folders
from fedact.training.experiment import Experiment
from fedact.training.workspace import Workspace, prepare


def trained_model(run: Run, method: str | None = None) -> tuple[Workspace, nn.Module]:
    """Return a workspace for a run's first seed, and its model after a method's last finished round, plain and in eval mode.

    method: by its full name, by default the run's first. Raises ConfigError where the run has no such method, where its
    checkpoint is gone, or where its data is.
    """
    _last_round(run, method)
    workspace = prepare(make_config(run.config))
    return workspace, workspace.model_with(trained_tensors(run, workspace.experiment, method))


def trained_tensors(run: Run, experiment: Experiment, method: str | None = None) -> dict[str, Tensor]:
    """Return the tensors that a method trained, from the first seed's last checkpoint; raises as ``trained_model``."""
    name, last = _last_round(run, method)
    if baseline_of(name) == LOCAL:
        raise ConfigError(f"{run.path}: {name} has no model of all clients: each goes on with its own")
    tensors = checkpoints.load(run_folders(run.path)[0].checkpoint(name, last))
    like = initial(tensors, experiment.start, experiment.config.update, experiment.config.seed)
    checkpoints.check_fit(tensors, like, f"the checkpoint of {run.path}")
    return tensors


def _last_round(run: Run, method: str | None) -> tuple[str, int]:
    """Return a method's name, by default the first's, and its last finished round under the first seed."""
    rows = run_folders(run.path)[0].rows()
    last = {row["method"]: row["round"] for row in rows if row["kind"] == "round"}
    if not last or (method or next(iter(last))) not in last:
        raise ConfigError(f"{run.path} finished no round of {method or 'any method'}, but of {', '.join(last) or 'none'}")
    name = method or next(iter(last))
    return name, last[name]
