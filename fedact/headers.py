"""What a comparison needs from a run's header, where the header says it at all: other versions say less."""

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from fedact.errors import ConfigError
from fedact.rows import Count, Row

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


def check_header(rows: Sequence[Row], where: object) -> None:
    """Raise ConfigError where the header in front of these rows is none that a run would have written."""
    if not rows:
        return
    try:
        _READER.validate_python(rows[0])
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{where}, line 1: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
