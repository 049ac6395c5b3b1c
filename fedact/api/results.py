"""A run read back from its folder, and the models that it trained."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch import nn

from fedact.api.inputs import array_inputs
from fedact.api.networks import network_text
from fedact.api.process import as_before
from fedact.config.code_digests import code_digest
from fedact.config.loading import make_config
from fedact.config.own_code import check_code, code_of, with_code_alone
from fedact.config.schema import Config
from fedact.federation.header import check_start
from fedact.storage import run as storage
from fedact.storage.run_folder import RunFolder
from fedact.training.trained_model import trained_tensors
from fedact.training.workspace import prepare

USUAL_MODEL = str(Config().model)


@dataclass(frozen=True, eq=False)
class Run(storage.Run):
    """A run: ``rounds`` and ``clients`` are pandas DataFrames, ``model`` returns what a method trained.

    own_code: whether the run's own code may run, as that of a run that this process has started.
    """

    own_code: bool = False

    def model(self, method: str | None = None, *, own_code: bool = False, network: Any = None) -> nn.Module:
        """Return the global model after the last finished round of a method, on the CPU and in eval mode.

        It is a plain one, the caller's own; of several seeds the first one's. ``model.preprocessing(x)`` makes its inputs of
        arrays, tensors or lists such as the run's, and refuses others. The run's data is read again: what no client trains
        comes from the start.

        method: by its full name, by default the run's first. own_code: let a network or data of the run's own code run, by
        the files that its config names. network: the run's network, a module or a function from a number of classes to
        one, in place of what its config names. Raises ConfigError where the run finished no round of the method, where its
        checkpoint, data or code is gone or another, and where its code is not allowed to run.
        """
        # What the methods compress plays no part in what they trained.
        config = make_config({**self.config, "method": ("exact",), "device": "cpu"})
        if network is not None:
            config = config.model_copy(update={"model": USUAL_MODEL})
        named = {text: digest for text, digest in (config.code or {}).items() if text in code_of(config)}
        check_code(config.model_copy(update={"code": named}), own_code or self.own_code, str(self.path), "own_code=True")
        config = with_code_alone(config)
        if network is not None:
            text = network_text(network)
            config = config.model_copy(update={"model": text, "code": {**(config.code or {}), text: code_digest(text)}})
        with as_before():
            workspace = prepare(config)
            check_start(self.headers[0], workspace.experiment, RunFolder(self.path).records)
            model = workspace.model_with(trained_tensors(self, workspace.experiment, method))
        if not hasattr(model, "preprocessing"):  # a network may have one of its own
            model.preprocessing = array_inputs(workspace.experiment)  # type: ignore[assignment]
        return model


def load_run(path: str | Path) -> Run:
    """Return a run read back from its folder, with all seeds of a run with several. Nothing of it is executed.

    Rows of a round that was never finished are left out. Raises ConfigError where the folder holds no run, or files that no
    run could have written.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as name:
    ...     RunFolder(Path(name)).append([
    ...         {"kind": "run", "schema": 1, "config": {"seed": 0}},
    ...         {"kind": "round", "method": "exact", "seed": 0, "round": 0, "accuracy": 0.25},
    ...         {"kind": "client", "method": "exact", "seed": 0, "round": 1, "client": 0, "peak_bytes": 4096},
    ...         {"kind": "round", "method": "exact", "seed": 0, "round": 1, "accuracy": 0.5, "clients": 1},
    ...     ])
    ...     run = load_run(name)
    >>> run.rounds[["method", "round", "accuracy"]].values.tolist()
    [['exact', 0, 0.25], ['exact', 1, 0.5]]
    >>> int(run.clients["peak_bytes"].max())
    4096
    """
    return with_models(storage.load_run(path))


def with_models(run: storage.Run, own_code: bool = False) -> Run:
    """Return a run with its models; own_code: whether its own code may run for them."""
    return Run(**{field.name: getattr(run, field.name) for field in fields(storage.Run)}, own_code=own_code)
