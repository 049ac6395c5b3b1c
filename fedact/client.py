"""The device's side of Flower: take the plan and the tensors, train, measure, send back what was trained."""

import time
from math import isfinite
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedact.config import Config
from fedact.data import Loader
from fedact.experiment import Experiment, shared
from fedact.mods import MODS
from fedact.plans import Plan
from fedact.schedule import learning_rate
from fedact.seeds import Purpose, generator
from fedact.strategies import make_strategy
from fedact.surgery import apply, load_states, trained_parameters
from fedact.training import LocalTraining, Recipe, evaluate, train_locally

app = ClientApp()


@app.train(mods=list(MODS))
def train(message: Message, context: Context) -> Message:
    """Train one client for one round.

    The message's config says which client, round and plan; the reply carries the trained tensors and the figures.
    Raises BudgetError where a step breaks the budget and FloatingPointError where training diverges; the reply then says so.
    """
    started = time.monotonic()
    order = message.content["config"]
    client, number = int(order["client"]), int(order["round"])  # type: ignore[arg-type]
    experiment, plan = shared(str(order["experiment"])), Plan.from_json(str(order["plan"]))
    arrays, states = message.content["arrays"], message.content["states"]
    assert isinstance(arrays, ArrayRecord)
    assert isinstance(states, ArrayRecord)
    seed = int(generator(experiment.config.seed, Purpose.METHOD, number, client).integers(2**62))
    model = apply(experiment.model_with(arrays.to_torch_state_dict()), plan, seed)
    load_states(model, plan, states.to_torch_state_dict())
    trained, accuracy = _train(experiment, plan, client, number)
    sent = ArrayRecord({name: p.detach().cpu() for name, p in trained_parameters(experiment.model).items()})
    figures: dict[str, Any] = {
        "num-examples": len(experiment.parts[client][0]),
        "accuracy": accuracy,
        "train-loss": trained.loss,
        "saved-bytes": trained.saved_bytes,
        "state-bytes": trained.state_bytes,
        "peak-bytes": trained.peak_bytes,
        "paper-bytes": trained.paper_bytes,
        "upload-bytes": sent.count_bytes(),
        "download-bytes": arrays.count_bytes() + states.count_bytes(),
        "seconds": time.monotonic() - started,
    }
    reply = RecordDict({"arrays": sent, "metrics": MetricRecord(figures), "config": ConfigRecord({"client": client})})
    return Message(reply, reply_to=message)


def _train(experiment: Experiment, plan: Plan, client: int, number: int) -> tuple[LocalTraining, float]:
    config = experiment.config
    training, held_out = (
        Loader(experiment.train.take(part), experiment.preprocessing, config.device) for part in experiment.parts[client]
    )
    random = generator(config.seed, Purpose.LOCAL_TRAINING, number, client)
    result = train_locally(
        experiment.model, training, len(training), plan, recipe(config, number), random, measured=experiment.measured
    )
    finite = all(bool(torch.isfinite(p).all()) for p in trained_parameters(experiment.model).values())
    if not (isfinite(result.loss) and finite):
        raise FloatingPointError(f"training diverged (loss {result.loss}): a lower --lr or --clip-norm may help")
    return result, evaluate(experiment.model, held_out, len(held_out))[0]


def recipe(config: Config, number: int) -> Recipe:
    """Return how a client trains in a round."""
    return Recipe(
        batch_size=config.batch_size,
        local_epochs=config.local_epochs,
        lr=learning_rate(config, number),
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        clip_norm=config.clip_norm,
        pull=make_strategy(config.strategy).pull,
    )
