"""A fleet from Python: ``fedact.run``, the command ``python -m fedact.simulate`` as one call."""

import logging
import sys
from pathlib import Path
from typing import Any

from torch import nn

from fedact.api.arrays import stored_arrays
from fedact.api.networks import network_text
from fedact.api.process import as_before, log_lines, silence
from fedact.api.results import Run, with_models
from fedact.api.settings import check_keywords, config_of
from fedact.cli.folders import start_in
from fedact.cli.simulate import run_seeds, show_end
from fedact.cli.warning_lines import warnings_once
from fedact.config.code_loading import file_being_run, own_failure
from fedact.config.errors import ConfigError
from fedact.config.folder import default_folder
from fedact.config.paths import expanded
from fedact.config.schema import Config
from fedact.federation.worker_grid import worker_count
from fedact.processes.handover import packed
from fedact.storage.locks import Locks
from fedact.storage.run import load_run
from fedact.storage.run_folder import RunFolder

CALLED = "fedact.run"
"""What the first row of a run's records says that it was called by."""

log = logging.getLogger(__name__)


def run(
    model: Any = None,
    train: Any = None,
    test: Any = None,
    *,
    out: str | Path | None = None,
    quiet: bool = False,
    **settings: Any,
) -> Run:
    """Let a fleet fine-tune a model, as ``python -m fedact.simulate`` does, and return the run as ``load_run`` does.

    Every setting of the command line is a keyword of the same name, with the same check and the same default, and the same
    settings give the same rows. Numbers, paths, lists and dictionaries are as good as texts: ``budget=512_000``,
    ``budget={"64KB": 10, None: 2}``, ``method=["hosvd", "auto"]``, ``faults={"drop": 0.1}``.

    model: a name (``"mobilenet_v2"``, ``"mine.py:build"``), a ``torch.nn.Module``, which is copied and starts from its own
    weights unless ``weights`` says otherwise, or a function from the number of classes to a module, which is given
    ``resolution`` too where it has a parameter of that name. train, test: instead of ``dataset``, each ``(x, y)`` or
    ``(x, y, clients)`` of arrays or tensors, a map-style Dataset of PyTorch, or a Hugging Face dataset; they are written
    into the cache once. out: the run's folder, by default ``runs/<time>-<dataset>-<model>``. Called again with the same
    settings, a run that was interrupted goes on in it, and a finished one is returned as it is. quiet: print nothing.

    Raises ConfigError, in one line, for what is wrong, before anything is written to ``out``; KeyboardInterrupt after
    Ctrl-C; OSError where the disk is full.

    >>> import fedact
    >>> def build(classes):
    ...     body = (nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    ...     return nn.Sequential(*body, nn.Linear(8, classes))
    >>> few = {"clients": 2, "rounds": 1, "layers": 1, "lr": 0.1, "resolution": 16, "max_examples": 100, "weights": "none"}
    >>> result = fedact.run(build, method="exact", out="mine", quiet=True, **few)
    >>> result.rounds["round"].tolist(), type(result.model("exact")).__name__
    ([0, 1], 'Sequential')
    """
    if (file := file_being_run()) is not None:
        raise ConfigError(f'{file} calls fedact.run as it is imported: put that under if __name__ == "__main__":')
    check_keywords(settings)
    network = _network(model)
    data, examples = _data(train, test, settings)
    config = _with_workers(config_of({**network, **data, **settings}), examples)
    folder = (default_folder(config) if out is None else expanded(out)).absolute()
    with as_before(), silence() if quiet else log_lines(), warnings_once():
        try:
            with Locks() as locks:
                worked = run_seeds(start_in(folder, config, locks), folder, locks, command=CALLED)
        except KeyboardInterrupt:
            if RunFolder(folder).config.exists():
                print(f"fedact: interrupted; call fedact.run with out={str(folder)!r} again to go on", file=sys.stderr)
            raise
        except (Exception, SystemExit) as error:
            if isinstance(error, ConfigError) or (said := own_failure(error)) is None:
                raise
            raise ConfigError(said) from error
        show_end(folder, worked)
    return with_models(load_run(folder), own_code=True)


def _network(model: Any) -> dict[str, Any]:
    """Return the settings that a network gives: its name, and for a module that it starts from its own weights."""
    if model is None or isinstance(model, str):
        return {} if model is None else {"model": model}
    return {"model": network_text(model), **({"weights": "none"} if isinstance(model, nn.Module) else {})}


def _data(train: Any, test: Any, settings: dict[str, Any]) -> tuple[dict[str, Any], int | None]:
    """Return the settings of data that is in memory, none where there is none, and how many training examples it has."""
    if train is None and test is None:
        return {}, None
    for name in ("dataset", "data_dir"):
        if settings.get(name) is not None:
            raise ConfigError(f"{name} names data, and train and test are data: give one of them")
    file, arrays = stored_arrays(train, test)
    # Whose each example is was given to be used.
    natural = {} if arrays.clients is None else {"partition": "clients"}
    return {"dataset": "npz", "data_dir": file, **natural}, len(arrays.x)


def _with_workers(config: Config, examples: int | None) -> Config:
    """Return a config whose number of processes is chosen, one where its code is in no file and cannot be sent to others.

    examples: to train on, None where they are not counted yet.
    """
    if config.workers != "auto" or config.runtime != "local":
        return config
    few = min((count for count in (config.max_examples, examples) if count is not None), default=None)
    count = worker_count(config.model_copy(update={"max_examples": few}))
    try:
        _ = packed(config.code or ()) if count > 1 else ()
    except ConfigError as error:
        log.warning(f"one process: {error}")
        count = 1
    return config.model_copy(update={"workers": count})
