"""The rows of records.jsonl: what a line holds, how lines are read, and in which order they may follow each other."""

from codecs import BOM_UTF8
from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, Literal, Required

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from fedact.config.errors import ConfigError
from fedact.storage.disk import read_bytes

SCORE_NAMES = {"classification": "accuracy", "segmentation": "mean IoU"}


def task_of(config: Mapping[str, Any]) -> str:
    """Return the task of a run's config; a run from before there were several classifies."""
    return str(config.get("task") or "classification")


def score_name(config: Mapping[str, Any]) -> str:
    """Return what the score of a run with this config is called."""
    return SCORE_NAMES.get(task_of(config), "score")


SCHEMA = 2
"""Of what is written now. Before 2, ``--weights pretrain`` redrew the test set (see ``redrawn_test_set``)."""

EXACT, LAX = ConfigDict(strict=True, extra="forbid"), ConfigDict(strict=True, extra="allow")

Row = dict[str, Any]


def redrawn_test_set(header: Row) -> bool:
    """Return whether a run's accuracy is not on the whole test set, but on examples redrawn in its clients' proportions.

    Before schema 2 the accuracy of classification with ``--weights pretrain`` was; the classes that only the server has were
    left out. header: the ``run`` row.
    """
    config = header["config"]
    return header.get("schema", 1) < 2 and config.get("weights") == "pretrain" and task_of(config) == "classification"


Count = Annotated[int, Field(ge=0, lt=2**63)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]


@with_config(LAX)
class RunRow(TypedDict, total=False):
    """The first line: what the run is.

    Of a natural partition, else null: client_names of those that train, by number; server_clients, whose examples are the
    server's; held_out_clients, on whom the global model is tested; partition_digest of whose each example is.
    """

    kind: Required[Literal["run"]]
    schema: Required[Literal[1, 2]]
    config: Required[dict[str, Any]]
    classes: list[str] | None
    client_names: list[str] | None
    server_clients: list[str] | None
    held_out_clients: list[str] | None
    partition_digest: str | None


@with_config(EXACT)
class ClientRow(TypedDict, total=False):
    """One client in one round.

    floor_bytes: the largest input and output of one layer, one image (see ``fedact.measure.floor``). device_bytes: the peak
    with trained weights, gradients, optimizer state, copies and the raw micro-batch. recompute: how many convolutions back,
    at most, what was made again was computed from (see ``Plan``). update: what of the trained layers was trained. All four
    are null in runs from before there were any.
    copy_bytes: of the received weights that a strategy or privacy keeps beside those being trained, 0 for none.
    Bytes that travelled (see ``fedact.federation.traffic``): download_bytes of the order, the first one with the whole
    initial model; upload_bytes of the reply, after privacy.
    """

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
    floor_bytes: Count | None
    device_bytes: Count | None
    copy_bytes: Count | None
    steps: Count | None
    saved_bytes_mean: Number | None
    saved_bytes_std: Number | None
    paper_bytes_mean: Number | None
    paper_bytes_std: Number | None
    plan: str | None
    trained_layers: Count | None
    micro_batch: Count | None
    recompute: Count | None
    update: str | None
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
    """The global model after one round.

    accuracy, loss: on the whole test set, of ``test_examples`` examples. client_accuracy, unheld_accuracy: on the classes
    that clients hold and on those that none holds (see ``fedact.training.forgetting``). forgotten: the fall of
    unheld_accuracy since round 0, a share, above 0 where it fell. worst_client_accuracy, mean_client_accuracy: over the
    round's clients, each on its own held-out examples. held_out_client_accuracy: over the clients that take no part in
    training, weighted by their held_out_client_examples; worst_held_out_client_accuracy: of the worst of them; all null
    where there are none. In rows of ``local:METHOD`` scores of a global model are the mean over the clients' own models.
    """

    kind: Required[Literal["round"]]
    method: Required[str]
    seed: Required[Count]
    round: Required[Count]
    accuracy: Share | None
    client_accuracy: Share | None
    unheld_accuracy: Share | None
    forgotten: Number | None
    test_examples: Count | None
    class_iou: list[Share | None] | None
    loss: Number | None
    worst_client_accuracy: Share | None
    mean_client_accuracy: Share | None
    held_out_client_accuracy: Share | None
    worst_held_out_client_accuracy: Share | None
    held_out_client_examples: Count | None
    saved_bytes_max: Count | None
    peak_bytes_max: Count | None
    clients: Count | None
    trained_by: dict[str, Count] | None
    seconds: Number | None


CLIENT_FIELDS, ROUND_FIELDS = tuple(ClientRow.__annotations__), tuple(RoundRow.__annotations__)
_FIELDS: dict[str, Sequence[str]] = {"client": CLIENT_FIELDS, "round": ROUND_FIELDS}
_READER: TypeAdapter[Any] = TypeAdapter(Annotated[RunRow | ClientRow | RoundRow, Field(discriminator="kind")])


def complete(row: Row) -> Row:
    """Return a row with every field of its kind in order: None where it has none, and for numbers that JSON cannot write.

    Raises KeyError for a field that its kind has not.
    """
    fields = _FIELDS.get(row["kind"], tuple(row))
    if unknown := set(row) - set(fields):
        raise KeyError(f"a {row['kind']} row has no field {', '.join(sorted(unknown))}")
    return {name: _finite(row.get(name)) for name in fields}


def _finite(value: Any) -> Any:
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def read_row(line: bytes) -> Row | None:
    """Return the row in a line of JSON, None where it is no row."""
    try:
        row: Row = _READER.validate_json(line.removeprefix(BOM_UTF8))
    except ValidationError:
        return None
    return row


def read_rows(file: Path) -> list[Row]:
    """Return the rows of records.jsonl, without a torn tail: a write without its last newline.

    Raises ConfigError for a missing file, or a broken line in what was written whole.
    """
    content = read_bytes(file)
    if b"\r" in content and b"\n" not in content:
        raise ConfigError(f"{file} ends its lines in \\r alone: they must end in \\n")
    # The last piece is what follows the last newline: nothing, or a line that was never finished.
    *lines, torn = content.split(b"\n")
    rows = [read_row(line) for line in lines]
    whole = max((number for number, row in enumerate(rows, start=1) if _ends_write(row)), default=0)
    for number, row in enumerate(rows, start=1):
        if row is None and (not torn or number <= max(whole, 1)):
            raise ConfigError(f"{file}, line {number}, is no record")
    until = rows.index(None) if None in rows else len(rows)
    return [row for row in rows[:until] if row is not None]


def finished_rows(rows: list[Row]) -> list[Row]:
    """Return the rows up to the last header or round, with which every write ends."""
    ends = [position for position, row in enumerate(rows) if _ends_write(row)]
    return rows[: ends[-1] + 1] if ends else []


def _ends_write(row: Row | None) -> bool:
    return row is not None and row["kind"] in ("run", "round")


def check_order(rows: Iterable[Row], where: object) -> None:
    """Raise ConfigError where a line is not what a run would have written there.

    One header comes first; each method's rounds count from 0, each after the rows of its clients; there is one seed, and one
    number of classes. where: the file, for the message.
    """
    rounds: dict[str, int] = {}
    clients: list[Row] = []
    seed: int | None = None
    classes: int | None = None
    for number, row in enumerate(rows, start=1):
        line = f"{where}, line {number}"
        if (row["kind"] == "run") != (number == 1):
            raise ConfigError(f"{line}: a run has one header, as its first line")
        scores = row.get("classes" if row["kind"] == "run" else "class_iou")
        if scores is not None and classes is not None and len(scores) != classes:
            raise ConfigError(f"{line}: class_iou has {len(scores)} classes, not {classes}")
        classes = classes if scores is None else len(scores)
        if row["kind"] == "run":
            continue
        seed = row["seed"] if seed is None else seed
        due = rounds.get(row["method"], -1) + 1
        if (row["round"], row["seed"]) != (due, seed):
            given = f"round {row['round']} of seed {row['seed']}"
            raise ConfigError(f"{line}: {row['method']} is due with round {due} of seed {seed}, not {given}")
        if row["kind"] == "client":
            clients.append(row)
        else:
            _check_clients(clients, row, line)
            rounds[row["method"]], clients = due, []


def _check_clients(clients: list[Row], row: Row, line: str) -> None:
    """Raise ConfigError where the rows before a round are not one for each of its clients, of the same method."""
    if any(client["method"] != row["method"] for client in clients):
        raise ConfigError(f"{line}: the clients before this round trained by another method than {row['method']}")
    if len({client["client"] for client in clients}) < len(clients) or row.get("clients") not in (None, len(clients)):
        raise ConfigError(f"{line}: round {row['round']} has {row.get('clients')} clients, but not a row for each")
