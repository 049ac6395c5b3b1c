"""Data of the user's own code: ``--dataset mydata.py:load``, a function that returns what it trains and tests on."""

import inspect
from time import thread_time
from typing import Any

import numpy as np

from fedact.config.code import split_code
from fedact.config.code_loading import load_code
from fedact.config.errors import ConfigError, shortened
from fedact.config.schema import Config
from fedact.data.examples import Examples, Request, Source
from fedact.data.own import as_arrays, source_of

OPTIONS = ("data_dir", "resolution", "seed")
"""Fields of Config that a function is given where it has a parameter of that name."""
QUICK = 1.0
"""Seconds of a processor: a function that took less is called twice, to see whether it returns the same."""
COMPARED = 100
"""Inputs of which that is seen."""


def check_own_data(config: Config) -> None:
    """Raise ConfigError for settings that data of the user's own code has not."""
    if settings := split_code(config.dataset)[1]:
        raise ConfigError(
            f"--dataset {config.data_name}: settings, as {settings!r}, are for methods; a data set's stand in its code"
        )
    if config.task != "classification":
        raise ConfigError(f"--dataset {config.dataset} is for --task classification, not for --task {config.task}")


def own_source(config: Config, request: Request) -> Source:
    """Return what the data function of a config's own code returns, a ``Source`` or ``(train, test)``, as a data set.

    train, test: what ``as_arrays`` takes. The code is run, if it is what the config's digests say. Raises ConfigError
    where it is missing, fails, or returns anything else; and, where that is quickly found, other examples each time.
    """
    function, begun = load_code(config.dataset, config.code), thread_time()
    source = _source(config, request, function)
    if thread_time() - begun < QUICK:
        _check_same(source, _source(config, request, function), config.dataset)
    return source


def _check_same(one: Source, other: Source, text: str) -> None:
    """Raise ConfigError where a function has returned other examples, by their labels and the first of their inputs."""
    for a, b in ((one.train, other.train), (one.test, other.test)):
        pairs = [(a.labels, b.labels)]
        if isinstance(a.images, np.ndarray) and isinstance(b.images, np.ndarray):
            pairs.append((a.images[:COMPARED], b.images[:COMPARED]))
        if not all(np.array_equal(before, now) for before, now in pairs):
            raise ConfigError(
                f"{text} returns other examples each time, and workers or a run that goes on call it again: seed it"
            )


def _source(config: Config, request: Request, function: Any) -> Source:
    text = config.dataset
    given = {"data_dir": request.path, "resolution": config.resolution, "seed": config.seed}
    made = _called(function, text, given)
    if isinstance(made, Source):
        return _checked(made, text)
    if not isinstance(made, tuple) or len(made) != 2:
        raise ConfigError(
            f"{text} returns {shortened(made)}: (train, test) is due, each (x, y) or (x, y, clients), or a Source"
        )
    train, test = (as_arrays(part, f"{name} of {text}") for part, name in zip(made, ("train", "test"), strict=True))
    return source_of(train, test, text)


def _called(function: Any, text: str, given: dict[str, Any]) -> Any:
    if not callable(function):
        raise ConfigError(f"{text} is a {type(function).__name__}: it must be a function that returns (train, test)")
    parameters = inspect.signature(function).parameters.values()
    rest = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [each.name for each in parameters if each.default is each.empty and each.kind not in rest]
    if strange := [name for name in needed if name not in OPTIONS]:
        raise ConfigError(f"{text} needs {strange[0]}: its parameters may be {', '.join(OPTIONS)}, each where it wants it")
    named = {each.name for each in parameters}
    try:
        return function(**{name: value for name, value in given.items() if name in named})
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{text} fails: {' '.join(f'{type(error).__name__}: {error}'.split()).rstrip(': ')}") from None


def _checked(source: Source, text: str) -> Source:
    """Return a source; raises ConfigError where its labels are none of its classes, or there are none."""
    for name in ("train", "test"):
        part = getattr(source, name)
        if not isinstance(part, Examples) or not len(part):
            raise ConfigError(f"{text} returns a Source whose {name} has no examples")
        if part.labels.min() < 0 or part.labels.max() >= source.classes:
            raise ConfigError(
                f"{text} returns a Source with a label in {name} that is not below its {source.classes} classes"
            )
    return source
