"""The scores of a round: of the global model, or the mean over the clients' own where each trains alone."""

from collections.abc import Iterable, Sequence

import numpy as np
from flwr.app import ArrayRecord

from fedact.config.baselines import CENTRAL
from fedact.federation.arrays import record_of, tensors_of
from fedact.federation.global_evaluation import evaluate_on_clients, evaluate_on_test_set
from fedact.federation.method_run import MethodRun
from fedact.federation.own_models import OwnModels
from fedact.models.tasks import Outcome
from fedact.storage.rows import Row
from fedact.training.forgetting import client_accuracy, forgotten, unheld_accuracy

Found = tuple[Outcome, list[Outcome]]
"""A model's outcome on the test set, and on each held-out client that has examples."""


class RoundScores:
    """Evaluates after rounds. unheld_before: what the model could do before the first on classes that no client holds."""

    def __init__(self, run: MethodRun, own: OwnModels | None) -> None:
        """own: the clients' models where each trains alone."""
        self.run, self.own = run, own
        self.unheld_before: float | None = None
        self._known: dict[int, tuple[int, Found]] = {}

    def of(self, number: int, arrays: ArrayRecord) -> Row:
        """Return the scores after a round; arrays: the global model's trained tensors, or the initial ones."""
        experiment = self.run.experiment
        models = [self._found(number, arrays)] if self.own is None or number == 0 else self._of_own(arrays)
        outcome = mean_outcome([test for test, _ in models])
        unheld = unheld_accuracy(outcome, experiment.held)
        if number == 0:
            self.unheld_before = unheld
        return {
            "accuracy": outcome.score, "client_accuracy": client_accuracy(outcome, experiment.held),
            "unheld_accuracy": unheld, "forgotten": forgotten(self.unheld_before, unheld),
            "test_examples": len(experiment.test), "class_iou": outcome.class_iou, "loss": outcome.loss,
            **self._on_held_out_clients([clients for _, clients in models]),
            **(self._on_clients(arrays) if number and self.run.baseline == CENTRAL else {}),
        }  # fmt: skip

    def _found(self, number: int, arrays: ArrayRecord) -> Found:
        """Return a model's outcomes.

        Before round 1 it is the same model for every method: those whose plans run it by the same operations share its own
        on the test set.
        """
        run, plan = self.run, self.run.deepest_plan
        known = run.workspace.start_outcomes if number == 0 else {}
        key = None if plan is None else (plan.layers, plan.method == "vanilla", plan.room_bytes is None)
        if key not in known:
            known[key] = evaluate_on_test_set(run.workspace, run.experiment_key, plan, arrays, run.records)
        held_out = run.experiment.held_out
        return known[key], [] if held_out is None else self._each(arrays, "held_out", held_out.parts)

    def _each(self, arrays: ArrayRecord, which: str, parts: Iterable[np.ndarray]) -> list[Outcome]:
        run = self.run
        return evaluate_on_clients(
            run.workspace, run.experiment_key, run.deepest_plan, arrays, run.records, which, parts
        )  # fmt: skip

    def _of_own(self, arrays: ArrayRecord) -> list[Found]:
        """Return the outcomes of every client's model; one that has not trained since it was evaluated is not run again."""
        assert self.own is not None
        start = tensors_of(arrays)
        for client in range(self.run.config.fleet_size):
            trained = self.own.rounds.get(client, 0)
            # All that never trained are the initial model.
            place = client if trained else -1
            if self._known.get(place, (-1, None))[0] != trained:
                model = record_of(self.own.tensors(client, start))
                self._known[place] = trained, self._found(trained, model)
        return [
            self._known[client if self.own.rounds.get(client, 0) else -1][1] for client in range(self.run.config.fleet_size)
        ]

    def _on_clients(self, arrays: ArrayRecord) -> Row:
        """Return the one model's scores on each client's own held-out examples, who trained none."""
        parts = (held_out for _, held_out in self.run.experiment.parts)
        return spread([outcome.score for outcome in self._each(arrays, "train", parts)])

    def _on_held_out_clients(self, models: Sequence[list[Outcome]]) -> Row:
        """Return the scores on the clients that take no part in training; nothing where there are none."""
        held_out = self.run.experiment.held_out
        if held_out is None:
            return {}
        sizes = [len(part) for part in held_out.parts if len(part)]
        each = [mean_score([clients[place].score for clients in models]) for place in range(len(sizes))]
        known = [(score, size) for score, size in zip(each, sizes, strict=True) if score is not None]
        total = sum(size for _, size in known)
        return {
            "held_out_client_accuracy": sum(score * size for score, size in known) / total if total else None,
            "worst_held_out_client_accuracy": min((score for score, _ in known), default=None),
            "held_out_client_examples": sum(sizes),
        }


def spread(scores: Iterable[float | None]) -> Row:
    """Return the worst and the mean of clients' scores, None where none has one."""
    known = [score for score in scores if score is not None]
    return {"worst_client_accuracy": min(known, default=None), "mean_client_accuracy": mean_score(known)}


def mean_score(scores: Iterable[float | None]) -> float | None:
    """Return the mean of the scores that are known, None where none is."""
    known = [score for score in scores if score is not None]
    return sum(known) / len(known) if known else None


def mean_outcome(outcomes: Sequence[Outcome]) -> Outcome:
    """Return the mean of several models' outcomes on the same examples."""
    if len(outcomes) == 1:
        return outcomes[0]
    first = outcomes[0]
    columns = zip(*(outcome.class_scores for outcome in outcomes), strict=True)
    by_class = tuple(map(mean_score, columns))
    return Outcome(
        mean_score(outcome.score for outcome in outcomes),
        sum(outcome.loss for outcome in outcomes) / len(outcomes),
        None if first.class_iou is None else by_class,
        by_class,
        first.class_examples,
    )
