"""Checks of run headers before a comparison; a header of another version may lack any field."""

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from fedact.config.code import code_label
from fedact.config.code_digests import known_by
from fedact.config.errors import ConfigError
from fedact.storage.rows import Count, Row, redrawn_test_set

SAME = ("task", "dataset", "model", "resolution", "weights", "max_examples", "max_test_examples")
"""Settings without which scores are not of the same thing."""
TEST_SET = "test set"
"""What runs differ in where only some measured accuracy on the whole of it."""
LAX = ConfigDict(strict=True, extra="allow")


@with_config(LAX)
class _Settings(TypedDict, total=False):
    rounds: Count
    seed: Count
    seeds: Count
    method: list[str]
    scope: Literal["saved", "peak"]


@with_config(LAX)
class _Header(TypedDict, total=False):
    config: _Settings
    versions: dict[str, Any] | None
    command: str | None


_READER = TypeAdapter(_Header)


def differences_that_matter(headers: Sequence[Row]) -> list[str]:
    """Return in what runs with these headers differ so that their scores are not of the same thing."""
    settings = [name for name in SAME if len({_value(header, name) for header in headers}) > 1]
    return settings + [TEST_SET] * (len({redrawn_test_set(header) for header in headers}) > 1)


def _value(header: Row, name: str) -> str:
    """Return a setting of a run as text; of code of the user's own with what it is known by."""
    value, code = str(header["config"].get(name)), header["config"].get("code")
    return f"{code_label(value)} {known_by(value, code)}" if isinstance(code, dict) and value in code else value


def note_on_test_set(header: Row, where: object) -> list[str]:
    """Return what a reader must know of a run whose accuracy is not on the whole test set; where: the run."""
    if not redrawn_test_set(header):
        return []
    return [
        f"{where} was written by an earlier fedact: its accuracy is on test examples redrawn in the clients' class "
        "proportions, without the classes that only the server has, and not on the whole test set"
    ]


def check_header(rows: Sequence[Row], where: object) -> None:
    """Raise ConfigError where the first of these rows is no run header; where: the file, for the message."""
    if not rows:
        return
    try:
        _READER.validate_python(rows[0])
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{where}, line 1: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def check_another_seed(rows: Sequence[Row], others: Sequence[Row], where: object) -> None:
    """Raise ConfigError where these rows are of another run than the others, or of a seed that is among them."""
    if not rows or not others:
        return
    this, first = rows[0]["config"], others[0]["config"]
    if strange := [name for name in SAME if _value(rows[0], name) != _value(others[0], name)]:
        raise ConfigError(
            f"{where} is of another run: its {strange[0]} is {this.get(strange[0])}, not {first.get(strange[0])}"
        )
    if again := _seeds(rows) & _seeds(others):
        raise ConfigError(f"{where} holds seed {min(again)} once more")


def _seeds(rows: Sequence[Row]) -> set[int]:
    return {row["seed"] for row in rows if row["kind"] != "run"}
