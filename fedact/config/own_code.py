"""The code of the user's own that a config names: with which digests a run starts, and when it may run at all."""

from collections.abc import Iterable

from fedact.config.code import GIVEN, absolute_code, code_label, is_code, names_code, split_code
from fedact.config.code_digests import check_digest, code_digest, known_by
from fedact.config.code_imports import imported_code
from fedact.config.code_loading import load_code
from fedact.config.errors import ConfigError
from fedact.config.schema import Config


def code_of(config: Config) -> tuple[str, ...]:
    """Return the code that a config names as its network, its data set and its methods, each once, without settings.

    >>> code_of(Config(model="mine.py:build", method=("mine.py:Blocks:size=4", "hosvd")))
    ('mine.py:build', 'mine.py:Blocks')
    """
    named = (text for text in (config.model, config.dataset, *config.method) if is_code(text))
    return tuple(dict.fromkeys(split_code(text)[0] for text in named))


def code_shown(text: str) -> str:
    """Return a name as errors call it: what is in no file by its name alone, another with its file, where one can look."""
    return code_label(text) if text.startswith(GIVEN) else text


def with_code(config: Config) -> Config:
    """Return the config with which a run starts: its code by absolute paths, and the digests of its files.

    These are the files that are named, and those that they import from beside them. Raises ConfigError where one is missing,
    or is another than the config says.
    """
    model, dataset, *methods = (
        absolute_code(text) if is_code(text) else text for text in (config.model, config.dataset, *config.method)
    )
    full = config.model_copy(update={"model": model, "dataset": dataset, "method": tuple(methods)})
    digests = {text: code_digest(text) for text in code_of(full)}
    digests |= _imported(digests)
    for text, due in (config.code or {}).items():
        if text in digests:
            check_digest(text, due)
    return full.model_copy(update={"code": digests or None})


def _imported(texts: Iterable[str]) -> dict[str, str]:
    return {key: digest for text in texts for key, digest in imported_code(text).items()}


def with_code_alone(config: Config) -> Config:
    """Return a run's config with the digests of the code that it names now, and of what that imports: others are left out.

    Nothing is run, but files are looked at: ``check_code`` comes first.
    """
    table = config.code or {}
    wanted = {*code_of(config), *_imported(code_of(config))}
    return config.model_copy(update={"code": {text: digest for text, digest in table.items() if text in wanted}})


def run_code(config: Config) -> None:
    """Run the code of a config that a run started with, in this process: from here on plans find their methods in it.

    Raises ConfigError where it fails, or is another than the config says.
    """
    for text in filter(names_code, config.code or {}):
        load_code(text, config.code)


def check_code(config: Config, allowed: bool, where: str, permission: str = "--own-code") -> None:
    """Raise ConfigError where a run's config would run code that is not allowed to, or is not what it was in that run.

    What stands in its table of digests alone counts too: ``run_code`` runs all of that.

    where: how the config was named, as in ``--resume runs/1``. permission: how it is given.
    """
    named = tuple(dict.fromkeys([*code_of(config), *(config.code or {})]))
    if named and not allowed:
        raise ConfigError(f"{where} runs code of its own, {', '.join(named)}: add {permission} if you trust it")
    for text in named:
        if text not in (config.code or {}):
            raise ConfigError(f"{where} names {text} without the digest of its file: start another run")
        check_digest(text, (config.code or {})[text])


def merged_code(begun: Config, given: Config) -> dict[str, str] | None:
    """Return the digests of a run that goes on with a config of now; raises ConfigError where a file is another by now."""
    now = given.code or {}
    for text, due in (begun.code or {}).items():
        if now.get(text, due) != due:
            check_digest(text, due)
    return {**(begun.code or {}), **now} or None


def digest_of(config: Config, text: str) -> str | None:
    """Return what a run knows its code by that it started with."""
    return known_by(split_code(text)[0], config.code or {})
