"""The server's evaluation on the whole test set, a portion in each of several processes."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from flwr.app import ArrayRecord
from torch import Tensor

from fedact.config.plan import Plan
from fedact.federation.arrays import tensors_of
from fedact.federation.shared_records import Sent, SharedRecords, received
from fedact.models.tasks import Count, Outcome
from fedact.training.batches import test_batches
from fedact.training.evaluation import counted, portions
from fedact.training.workspace import Workspace, workspace_of


@dataclass(frozen=True, eq=False)
class Portion:
    """A model to evaluate on some of the test examples.

    key: of the workspace, by which a process finds its own. plan: under which the most layers are trained: what is frozen
    then is so under every plan; None for a model that nobody trains. arrays: the model's trained tensors. positions: of the
    examples, which are those of the experiment under the name ``which``.
    """

    key: str
    plan: Plan | None
    arrays: Sent
    positions: np.ndarray
    which: str = "test"


def evaluate_on_test_set(
    workspace: Workspace, key: str, plan: Plan | None, arrays: ArrayRecord, records: SharedRecords
) -> Outcome:
    """Return a model's metrics on the whole test set, the same to the bit for any number of workers.

    key: of the workspace. records: by which workers, if there are any, get the arrays. Other arguments as of ``Portion``.
    """
    examples = len(workspace.experiment.test)
    if records.workers.count == 1:
        return count_in(workspace, plan, tensors_of(arrays, copy=False), np.arange(examples)).outcome()
    parts = portions(examples, workspace.experiment.config.task)
    return _joined(
        _counts(workspace, [Portion(key, plan, records.share(arrays), positions) for positions in parts], records)
    )


def evaluate_on_clients(
    workspace: Workspace,
    key: str,
    plan: Plan | None,
    arrays: ArrayRecord,
    records: SharedRecords,
    which: str,
    parts: Iterable[np.ndarray],
) -> list[Outcome]:
    """Return a model's metrics on each of some clients' examples; those that have none are left out.

    which: name of the examples. parts: each client's positions among these. Other arguments as above.
    """
    asked = [Portion(key, plan, records.share(arrays), positions, which) for positions in parts if len(positions)]
    return [count.outcome() for count in _counts(workspace, asked, records)]


def _counts(workspace: Workspace, asked: Sequence[Portion], records: SharedRecords) -> list[Count]:
    if records.workers.count > 1:
        return list(records.workers.results(count_portion, asked))
    return [
        count_in(workspace, each.plan, tensors_of(received(each.arrays), copy=False), each.positions, each.which)
        for each in asked
    ]


def _joined(counts: Sequence[Count]) -> Outcome:
    total, *others = counts
    for count in others:
        total.join(count)
    return total.outcome()


def count_portion(portion: Portion) -> Count:
    """Return the count of a portion, made in this process's workspace."""
    tensors = tensors_of(received(portion.arrays), copy=False)
    return count_in(workspace_of(portion.key), portion.plan, tensors, portion.positions, portion.which)


def count_in(
    workspace: Workspace, plan: Plan | None, tensors: Mapping[str, Tensor], positions: np.ndarray, which: str = "test"
) -> Count:
    """Return the count of some examples in a workspace; tensors: the model's trained ones, others as of ``Portion``."""
    experiment = workspace.experiment
    model = workspace.model_with(tensors) if plan is None else workspace.model_under(plan, tensors)
    batches = test_batches(workspace, plan, tensors, positions, which)
    return counted(model, batches, len(positions), experiment.config.task, len(experiment.classes))
