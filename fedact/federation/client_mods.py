"""Flower mods between a client's training and its reply: errors, simulated damage, privacy; the first acts last."""

import re
import traceback
from collections.abc import Callable
from functools import partial

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp.mod import LocalDpMod

from fedact.config.faults import damage_update
from fedact.config.privacy import LocalDp, make_privacy
from fedact.config.seeds import Purpose, generator, numpy_seed
from fedact.federation.arrays import of_bytes
from fedact.federation.replies import FAILURE

Train = Callable[[Message, Context], Message]
GENERATED = re.compile(r"<eval_with_key>\.\d+")
"""What ``torch.fx`` calls the source of a graph's code: with a number that counts the graphs of the process."""


def report_exceptions(message: Message, context: Context, train: Train) -> Message:
    """Reply with the reason and the traceback of an exception: Flower's runtimes pass on its text alone, or nothing."""
    try:
        return train(message, context)
    except Exception as error:
        # A client's row is the same whatever its process has done before.
        told = GENERATED.sub("<eval_with_key>", traceback.format_exc())
        said = ConfigRecord({"reason": f"{type(error).__name__}: {error}", "traceback": told})
        return Message(RecordDict({FAILURE: said}), reply_to=message)


def corrupt_update(message: Message, context: Context, train: Train) -> Message:
    """Damage the update of a client that the order says is corrupt; the server has to detect it."""
    reply, order = train(message, context), message.content["config"]
    if damage := str(order.get("damage", "")):
        tensors = damage_update(_arrays(reply).to_torch_state_dict(), damage, str(order["damaged"]))
        reply.content["arrays"] = ArrayRecord(tensors)
    return reply


def privatize_update(message: Message, context: Context, train: Train) -> Message:
    """Clip the update and add noise to it, as the order says.

    The noise of a simulation follows from its seed, which the server knows; an order without one leaves it to the device.
    Raises ValueError for an update of nothing but zeros, which Flower's mod cannot clip.
    """
    reply, order = train(message, context), message.content["config"]
    rule = make_privacy(str(order["privacy"]))
    if not isinstance(rule, LocalDp):
        return reply
    received, sent = message.content["arrays"], _arrays(reply)
    assert isinstance(received, ArrayRecord)
    # The mod compares all that was received with all that is sent: it is shown no more than what this client trains.
    # And it takes arrays apart, which must be bytes for that.
    trained = ArrayRecord({name: of_bytes(received[name]) for name in sent})
    if all(trained[name].data == sent[name].data for name in sent):
        raise ValueError("training changed nothing: an update of nothing but zeros cannot be clipped")
    asked = Message(RecordDict({"arrays": trained}), reply_to=message)
    mod = LocalDpMod(rule.clipping_norm, rule.reach, rule.epsilon, rule.delta)
    random = np.random.default_rng()
    if "noise-seed" in order:
        seed, number, client = (int(order[name]) for name in ("noise-seed", "round", "client"))  # type: ignore[arg-type]
        random = generator(seed, Purpose.PRIVACY, number, client)
    # The mod draws from numpy's global generator, and a run's numbers come from its own seeds.
    with numpy_seed(random):
        return mod(asked, context, lambda *_: reply)


def _arrays(reply: Message) -> ArrayRecord:
    arrays = reply.content["arrays"]
    assert isinstance(arrays, ArrayRecord)
    return arrays


MODS = (report_exceptions, corrupt_update, privatize_update)


def with_mods(train: Train) -> Train:
    """Return a training inside all MODS, for apps that cannot give them to Flower."""
    for mod in reversed(MODS):
        train = partial(mod, train=train)
    return train
