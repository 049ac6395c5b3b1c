"""Replies of clients, in order and checked before they reach the model."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import isfinite, isnan
from typing import Any

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from torch import Tensor

from fedact.config.errors import BadReply, NoReply
from fedact.config.plan import Plan
from fedact.federation.arrays import tensor_of

HEADER_BYTES = 4096
"""More than an array's description ever takes."""
FAILURE = "failure"
"""The record of a reply that says why its client has nothing to send."""


def in_order(replies: Iterable[Message], clients: Mapping[int, int]) -> Iterator[tuple[int, Message | None]]:
    """Yield every client with its reply, None where there is none, in the order of ``clients``.

    clients: numbers by node. Only replies that arrive early are held back.
    """
    waiting: dict[int, Message] = {}
    left = list(clients.values())
    for reply in replies:
        client = clients.get(reply.metadata.src_node_id)
        if client in left:
            waiting[client] = reply
        while left and left[0] in waiting:
            yield left[0], waiting.pop(left.pop(0))
    yield from ((client, waiting.get(client)) for client in left)


def read_reply(
    reply: Message | None,
    expected: Mapping[str, Tensor],
    plan: Plan,
    examples: int,
    classes: int | None = None,
    held_out: int = 1,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return a reply's tensors, and its figures with a record's field names.

    expected: tensors of the names, shapes and types that the plan trains. plan: whose budget its bytes must keep. examples:
    how many the client trains on. classes: for how many it says an IoU, none where the task is to classify. held_out: on how
    many examples it is scored; on none there is no accuracy.
    Raises BadReply for anything else, and for what is not finite; NoReply where the client failed or did not answer.
    """
    if reply is None:
        raise NoReply("no reply came before the deadline")
    if reply.has_error():
        raise NoReply(reply.error.reason or f"Flower's error {reply.error.code}")
    if isinstance(failure := reply.content.get(FAILURE), ConfigRecord):
        reason, traceback = (str(failure.get(name, "")) for name in ("reason", "traceback"))
        raise NoReply(reason or "the client failed and did not say why", traceback or None)
    arrays, metrics = reply.content.get("arrays"), reply.content.get("metrics")
    if not isinstance(arrays, ArrayRecord) or not isinstance(metrics, MetricRecord):
        raise BadReply("the reply holds no tensors or no figures")
    if missing := [name for name in expected if name not in arrays]:
        raise BadReply(f"tensor {missing[0]!r} is missing")
    if strange := [name for name in arrays if name not in expected]:
        raise BadReply(f"tensor {strange[0]!r} is none that the plan trains")
    tensors = {name: _tensor(name, arrays[name], like) for name, like in expected.items()}
    return tensors, _figures(metrics, plan, examples, held_out, classes)


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Tell whether every number is finite."""
    return all(map(_is_finite, tensors))


def _is_finite(tensor: Tensor) -> bool:
    # The sum takes a third of the time of the ends. Large numbers overflow it, and NaN is the least and the largest.
    return isfinite(float(tensor.sum())) or all(isfinite(float(end)) for end in torch.aminmax(tensor))


def _tensor(name: str, array: Array, like: Tensor) -> Tensor:
    # Before it is read: what is too long cannot be right, and could fill the memory.
    if len(array.data) > like.nbytes + HEADER_BYTES:
        raise BadReply(f"tensor {name!r} has {len(array.data):,} bytes, not {like.nbytes:,}")
    try:
        tensor = tensor_of(array, copy=False)
    except Exception as error:
        raise BadReply(f"tensor {name!r} cannot be read: {error}") from None
    if tensor.shape != like.shape:
        raise BadReply(f"tensor {name!r} has shape {tuple(tensor.shape)}, not {tuple(like.shape)}")
    if tensor.dtype != like.dtype:
        raise BadReply(f"tensor {name!r} is of type {tensor.dtype}, not {like.dtype}")
    if not all_finite([tensor]):
        raise BadReply(f"tensor {name!r} is not finite")
    return tensor


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and value >= 0


def _is_amount(value: Any) -> bool:
    return isinstance(value, int | float) and isfinite(value) and value >= 0


def _is_share(value: Any) -> bool:
    return _is_amount(value) and value <= 1


def _is_no_score(value: Any) -> bool:
    return isinstance(value, float) and isnan(value)


FIGURES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "num-examples": (_is_count, "a whole number"),
    "accuracy": (_is_share, "a share"),
    "train-loss": (_is_amount, "finite and at least 0"),
    "steps": (_is_count, "a whole number"),
    **{f"{name}-bytes": (_is_count, "a whole number") for name in ("saved", "state", "peak", "paper", "copy")},
    **{f"{name}-bytes-{of}": (_is_amount, "finite and at least 0") for name in ("saved", "paper") for of in ("mean", "std")},
    "seconds": (_is_amount, "finite and at least 0"),
}
"""The one table of what a reply says beside its tensors, and what it must be."""
CLASS_IOU = "class-iou"
"""What it also says where the task is to segment: a list, NaN for a class that is not there."""


def _figures(metrics: MetricRecord, plan: Plan, examples: int, held_out: int, classes: int | None) -> dict[str, Any]:
    wanted = {*FIGURES, *([] if classes is None else [CLASS_IOU])}
    if wrong := sorted(wanted ^ set(metrics)):
        raise BadReply(f"figure {wrong[0]!r} is {'missing' if wrong[0] in wanted else 'none that a reply has'}")
    for name, (holds, must) in FIGURES.items():
        # No pixel may count among those that a client holds out, and it may hold out nothing.
        unscored = name == "accuracy" and (classes is not None or not held_out) and _is_no_score(metrics[name])
        if not (unscored or holds(metrics[name])):
            raise BadReply(f"figure {name!r} is {_shown(metrics[name])}, and must be {must}")
    if metrics["num-examples"] != examples:
        raise BadReply(f"the client says it trained on {metrics['num-examples']} examples, but it has {examples}")
    held = int(metrics[f"{plan.scope}-bytes"])  # type: ignore[arg-type]
    if plan.budget_bytes is not None and held > plan.budget_bytes:
        raise BadReply(f"the client says a step held {held:,} {plan.scope} bytes, over the budget of {plan.budget_bytes:,}")
    figures = {name.replace("-", "_"): metrics[name] for name in FIGURES}
    if classes is None:
        return figures | {"accuracy": None if _is_no_score(metrics["accuracy"]) else metrics["accuracy"]}
    class_iou = _class_iou(metrics[CLASS_IOU], classes)
    score = None if _is_no_score(metrics["accuracy"]) else metrics["accuracy"]
    if (score is None) != all(iou is None for iou in class_iou):
        raise BadReply("figure 'accuracy' is NaN where some class has an IoU, or a share where none has")
    return figures | {"accuracy": score, "class_iou": class_iou}


def _class_iou(values: Any, classes: int) -> list[float | None]:
    """Return each class's IoU, None for one that is not there."""
    if not isinstance(values, list) or len(values) != classes:
        raise BadReply(f"figure {CLASS_IOU!r} is {_shown(values)}, and must be a list of {classes}, a share for each class")
    shares = [None if isnan(value) else value for value in values]
    if strange := [number for number, share in enumerate(shares) if share is not None and not _is_share(share)]:
        raise BadReply(f"figure {CLASS_IOU!r} is {shares[strange[0]]} for class {strange[0]}, and must be a share or NaN")
    return shares


def _shown(value: Any) -> str:
    return f"a list of {len(value)}" if isinstance(value, Sequence) else str(value)
