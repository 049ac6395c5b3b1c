"""A run's model as its rounds left it, with what the run stood on."""

from torch import nn

from fedact import checkpoints
from fedact.errors import ConfigError
from fedact.experiment import Experiment, prepare
from fedact.records import Run, run_folders
from fedact.settings import make_config


def trained_model(run: Run, method: str | None = None) -> tuple[Experiment, nn.Module]:
    """Return what a run's first seed stands on, and its model after a method's last finished round, plain and in eval mode.

    method: by its full name, by default the run's first. Raises ConfigError where the run has no such method, where its
    checkpoint is gone, or where its data is.
    """
    folder = run_folders(run.path)[0]
    last = {row["method"]: row["round"] for row in folder.rows() if row["kind"] == "round"}
    if not last or (method or next(iter(last))) not in last:
        raise ConfigError(f"{run.path} finished no round of {method or 'any method'}, but of {', '.join(last) or 'none'}")
    name = method or next(iter(last))
    experiment = prepare(make_config(run.config))
    tensors = checkpoints.load(folder.checkpoint(name, last[name]))
    like = {key: tensor for key, tensor in experiment.start.items() if key in tensors}
    checkpoints.check_fit(tensors, like, f"the checkpoint of {run.path}")
    return experiment, experiment.model_with(tensors)
