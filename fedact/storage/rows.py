"""What a line of records.jsonl holds, and in which order lines may follow each other."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, Required

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from fedact.config.errors import ConfigError

SCORE_NAMES = {"classification": "accuracy", "segmentation": "mean IoU"}


def task_of(config: Mapping[str, Any]) -> str:
    """Return the task of a run's config; a run from before there were several classifies."""
    return str(config.get("task") or "classification")


def score_name(config: Mapping[str, Any]) -> str:
    """Return what the score of a run with this config is called."""
    return SCORE_NAMES.get(task_of(config), "score")


SCHEMA = 1

EXACT, LAX = ConfigDict(strict=True, extra="forbid"), ConfigDict(strict=True, extra="allow")

Row = dict[str, Any]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]


@with_config(LAX)
class RunRow(TypedDict, total=False):
    """The first line: what the run is."""

    kind: Required[Literal["run"]]
    schema: Required[Literal[1]]
    config: Required[dict[str, Any]]
    classes: list[str] | None


@with_config(EXACT)
class ClientRow(TypedDict, total=False):
    """One client in one round."""

    kind: Required[Literal["client"]]
    method: Required[str]
    seed: Required[Count]
    round: Required[Count]
    client: Required[Count]
    status: Literal["ok", "head-only", "skipped", "failed"] | None
    reason: str | None
    budget_bytes: Count | None
    saved_bytes: Count | None
    state_bytes: Count | None
    peak_bytes: Count | None
    paper_bytes: Count | None
    steps: Count | None
    saved_bytes_mean: Number | None
    saved_bytes_std: Number | None
    paper_bytes_mean: Number | None
    paper_bytes_std: Number | None
    plan: str | None
    trained_layers: Count | None
    micro_batch: Count | None
    num_examples: Count | None
    train_loss: Number | None
    accuracy: Share | None
    class_iou: list[Share | None] | None
    upload_bytes: Count | None
    download_bytes: Count | None
    fault: str | None
    traceback: str | None
    seconds: Number | None


@with_config(EXACT)
class RoundRow(TypedDict, total=False):
    """The global model after one round."""

    kind: Required[Literal["round"]]
    method: Required[str]
    seed: Required[Count]
    round: Required[Count]
    accuracy: Share | None
    class_iou: list[Share | None] | None
    loss: Number | None
    worst_client_accuracy: Share | None
    saved_bytes_max: Count | None
    peak_bytes_max: Count | None
    clients: Count | None
    trained_by: dict[str, Count] | None
    seconds: Number | None


def _fields(row: type) -> tuple[str, ...]:
    return tuple(row.__annotations__)


CLIENT_FIELDS, ROUND_FIELDS = _fields(ClientRow), _fields(RoundRow)
_READER: TypeAdapter[Any] = TypeAdapter(Annotated[RunRow | ClientRow | RoundRow, Field(discriminator="kind")])


def read_row(line: bytes) -> Row | None:
    """Return the row in a line, None where it is no row."""
    try:
        row: Row = _READER.validate_json(line)
    except ValidationError:
        return None
    return row


def ends_something(row: Row | None) -> bool:
    """Return whether the row is the last of a write: a run's header or a round."""
    return row is not None and row["kind"] in ("run", "round")


def check_order(rows: Iterable[Row], where: object) -> None:
    """Raise ConfigError where a line is not what a run would have written there.

    One header comes first; each method's rounds count from 0, each after the rows of its clients; there is one seed, and one
    number of classes.
    """
    rounds: dict[str, int] = {}
    clients: list[Row] = []
    seed = None
    classes: int | None = None
    for number, row in enumerate(rows, start=1):
        if (row["kind"] == "run") != (number == 1):
            raise ConfigError(f"{where}, line {number}: a run has one header, as its first line")
        if row["kind"] == "run":
            classes = _length(row.get("classes"))
            continue
        classes = _check_classes(row, classes, f"{where}, line {number}")
        seed = row["seed"] if seed is None else seed
        due = rounds.get(row["method"], -1) + 1
        if (row["round"], row["seed"]) != (due, seed):
            given = f"round {row['round']} of seed {row['seed']}"
            raise ConfigError(f"{where}, line {number}: {row['method']} is due with round {due} of seed {seed}, not {given}")
        if row["kind"] == "client":
            clients.append(row)
        else:
            _check_clients(clients, row, f"{where}, line {number}")
            rounds[row["method"]], clients = due, []


def _check_classes(row: Row, classes: int | None, where: str) -> int | None:
    """Return of how many classes the rows tell so far; raises ConfigError where this row tells of another number."""
    own = _length(row.get("class_iou"))
    if own is not None and own != (own if classes is None else classes):
        raise ConfigError(f"{where}: class_iou has {own} classes, not {classes}")
    return own if classes is None else classes


def _length(values: list[Any] | None) -> int | None:
    return None if values is None else len(values)


def _check_clients(clients: list[Row], row: Row, where: str) -> None:
    if any(client["method"] != row["method"] for client in clients):
        raise ConfigError(f"{where}: the clients before this round trained by another method than {row['method']}")
    if len({client["client"] for client in clients}) < len(clients) or row.get("clients") not in (None, len(clients)):
        raise ConfigError(f"{where}: round {row['round']} has {row.get('clients')} clients, but not a row for each")
