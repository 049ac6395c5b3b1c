"""The client's side of Flower: receive plan and tensors, train, measure, reply with the trained tensors."""

import time
from collections.abc import Mapping, Sequence
from math import isfinite, nan
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedact.config.baselines import WITHOUT_A_SERVER
from fedact.config.errors import ConfigError
from fedact.config.plan import Plan
from fedact.config.schema import Config
from fedact.config.seeds import Purpose, generator
from fedact.federation.arrays import record_of, tensors_of
from fedact.federation.client_mods import MODS
from fedact.federation.replies import all_finite
from fedact.measure.memory import stored_bytes
from fedact.models.tasks import Outcome
from fedact.nn.surgery import load_states
from fedact.training.batches import client_batches
from fedact.training.evaluation import evaluate
from fedact.training.experiment import Experiment
from fedact.training.local import LocalTraining, train_locally
from fedact.training.recipe import keeps_received_weights, recipe
from fedact.training.workspace import Workspace, workspace_of

app = ClientApp()

DIVERGED = "training diverged ({}): a lower --lr or --clip-norm may help"
AUDIT_EVERY, AUDITED_STEPS = 20, 3
"""One client in so many measures a step though its bytes are known, another one each round; one of its first few steps."""


@app.train(mods=list(MODS))
def train(message: Message, context: Context) -> Message:
    """Train one client for one round, in this process's workspace."""
    return train_on(ordered_workspace(message.content["config"]), message)


def ordered_workspace(order: Mapping[str, Any]) -> Workspace:
    """Return this process's workspace for an order; raises ConfigError where its initial weights are not the server's."""
    workspace, start = workspace_of(str(order["experiment"])), str(order["start"])
    if (here := workspace.experiment.start_digest) != start:
        raise ConfigError(
            f"the server's initial weights are {start[:8]}, and here they are {here[:8]}: machines of one run must be alike"
        )
    return workspace


def train_on(workspace: Workspace, message: Message) -> Message:
    """Train one client for one round in a workspace.

    The message's config says which client, round and plan; the reply carries the trained tensors and the figures.
    Raises BudgetError where a step breaks the budget and FloatingPointError where training diverges; the reply then says so.
    """
    started, experiment = time.monotonic(), workspace.experiment
    order = message.content["config"]
    client, number = int(order["client"]), int(order["round"])  # type: ignore[arg-type]
    plan = Plan.from_json(str(order["plan"]))
    arrays, states = message.content["arrays"], message.content["states"]
    assert isinstance(arrays, ArrayRecord)
    assert isinstance(states, ArrayRecord)
    seed = int(generator(experiment.config.seed, Purpose.METHOD, number, client).integers(2**62))
    model = workspace.model_under(plan, tensors_of(arrays, copy=False), seed)
    load_states(model, plan, tensors_of(states))
    pool: list[int] = list(order.get("pool", ()))  # type: ignore[arg-type]
    config = experiment.config
    if "baseline" in order:
        config = config.model_copy(update=WITHOUT_A_SERVER)
    own, held_out = examples_of(experiment, pool or [client])
    trained, outcome = _train(workspace, config, plan, client, number, (own, held_out), list(arrays))
    tensors = {name: parameter.detach() for name, parameter in workspace.trained.items()}
    if not all_finite(tensors.values()):
        raise FloatingPointError(DIVERGED.format("some weights are not finite"))
    sent = record_of(tensors)
    figures: dict[str, Any] = {
        "num-examples": len(own),
        "accuracy": nan if outcome.score is None else outcome.score,
        **measured_iou(outcome),
        "train-loss": trained.loss,
        **{name.replace("_", "-"): figure for name, figure in vars(trained).items() if name != "loss"},
        "copy-bytes": stored_bytes(tensors.values()) if keeps_received_weights(config) else 0,
        "seconds": time.monotonic() - started,
    }
    reply = RecordDict({"arrays": sent, "metrics": MetricRecord(figures), "config": ConfigRecord({"client": client})})
    return Message(reply, reply_to=message)


def examples_of(experiment: Experiment, clients: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions of the clients' training and of their held-out examples."""
    own, held_out = zip(*(experiment.parts[client] for client in clients), strict=True)
    return np.concatenate(own), np.concatenate(held_out)


def _train(
    workspace: Workspace,
    config: Config,
    plan: Plan,
    client: int,
    number: int,
    examples: tuple[np.ndarray, np.ndarray],
    moving: list[str],
) -> tuple[LocalTraining, Outcome]:
    experiment, (own, held_out) = workspace.experiment, examples
    cuts = generator(config.seed, Purpose.AUGMENTATION, number, client)
    training, testing = client_batches(workspace, plan, own, held_out, moving, cuts)
    random = generator(config.seed, Purpose.LOCAL_TRAINING, number, client)
    result = train_locally(
        workspace.model,
        training,
        len(own),
        plan,
        recipe(config, number, plan.lr),
        random,
        measured=workspace.measured,
        audited=audited_steps(client, number),
        trained=list(workspace.trained.values()),
        codecs=workspace.codecs,
    )
    if not isfinite(result.loss):
        raise FloatingPointError(DIVERGED.format(f"loss {result.loss}"))
    return result, evaluate(workspace.model, testing, len(held_out), config.task, len(experiment.classes))


def audited_steps(client: int, number: int) -> tuple[int, ...]:
    """Return the numbers of the steps that a client measures in a round though their bytes are known."""
    return ((client // AUDIT_EVERY + number) % AUDITED_STEPS,) if (client + number) % AUDIT_EVERY == 0 else ()


def measured_iou(outcome: Outcome) -> dict[str, list[float]]:
    """Return the IoU of each class as Flower sends it, not a number for one that is not there; nothing without masks."""
    if outcome.class_iou is None:
        return {}
    return {"class-iou": [nan if value is None else value for value in outcome.class_iou]}
