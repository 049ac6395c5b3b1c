"""A run's workspace in other processes: nothing is read, decoded or pretrained again, and its arrays are mapped."""

from fedact.models.initialization import network
from fedact.processes.pool import Workers
from fedact.processes.shared import Shared
from fedact.training.experiment import Experiment
from fedact.training.threads import use_threads
from fedact.training.workspace import Workspace, workspace_for


def share_workspace(workspace: Workspace, key: str, workers: Workers) -> None:
    """Let every worker open this workspace under its key before its next call; without processes nothing is done.

    Raises OSError where there is no room on the disk for its images and weights.
    """
    if workers.count > 1:
        # Computed here, they go with the experiment.
        _ = workspace.experiment.start_digest
        if workspace.experiment.config.cache_size != "none":
            _ = workspace.experiment.image_digests
        shared = workers.share(workspace.experiment)
        workers.first(open_shared, (key, shared))
        # From here on this process maps the images too: they are in memory once.
        workspace.experiment = shared.open()


def open_shared(argument: tuple[str, Shared]) -> None:
    """Open a shared experiment's workspace in this process, in place of any other."""
    key, shared = argument
    workspace_for(key, lambda: _opened(shared.open()))


def _opened(experiment: Experiment) -> Workspace:
    config = experiment.config
    use_threads(config.threads)
    model = network(config, len(experiment.classes), experiment.train.images.shape)
    return Workspace(experiment, model.to(config.device))
