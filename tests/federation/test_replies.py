"""What a reply must be before it touches the model, and that replies are taken in by client number, whenever they come."""

import io
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from hypothesis import given
from hypothesis import strategies as st
from torch import fx, nn

from fedact.config.errors import BadReply, NoReply
from fedact.federation.client_mods import report_exceptions
from fedact.federation.local_grid import LocalGrid
from fedact.federation.replies import FIGURES, in_order, read_reply
from fedact.training.averaging import RunningMean
from tests.support.planned import plan_for
from tests.support.portions import examples

EXPECTED = {"deep.weight": torch.zeros(2, 3), "head.bias": torch.zeros(4)}
GOOD = {
    "num-examples": 5, "accuracy": 0.5, "train-loss": 1.25, "saved-bytes": 10, "state-bytes": 0, "peak-bytes": 20,
    "paper-bytes": 8, "copy-bytes": 40, "seconds": 0.5, "steps": 3,
    "saved-bytes-mean": 9.5, "saved-bytes-std": 0.5, "paper-bytes-mean": 7.5, "paper-bytes-std": 0.25,
}  # fmt: skip


def order() -> Message:
    # A message takes its run and its sender from what the grid sets.
    LocalGrid(ClientApp(), clients=1)
    return Message(RecordDict(), 2, "train")


def reply_with(arrays=None, figures=GOOD, **records) -> Message:
    arrays = ArrayRecord({name: t + 1 for name, t in EXPECTED.items()}) if arrays is None else arrays
    content = {"arrays": arrays, "metrics": MetricRecord(dict(figures)), **records}
    return Message(RecordDict({name: record for name, record in content.items() if record is not None}), reply_to=order())


def read(reply):
    return read_reply(reply, EXPECTED, plan_for("20KB"), examples=5)


def raw(array, **changes) -> Array:
    made = Array(np.asarray(array))
    fields = {"dtype": made.dtype, "shape": made.shape, "stype": made.stype, "data": made.data, **changes}
    return Array(**fields)


def stored(save) -> bytes:
    file = io.BytesIO()
    save(file)
    return file.getvalue()


def test_a_good_reply_is_its_tensors_and_its_figures():
    tensors, figures = read(reply_with())
    assert list(tensors) == list(EXPECTED)
    assert all(torch.equal(tensors[name], torch.ones_like(like)) for name, like in EXPECTED.items())
    assert figures == {name.replace("-", "_"): value for name, value in GOOD.items()}
    assert set(GOOD) == set(FIGURES)


ones = np.ones((2, 3), np.float32)
BROKEN = {
    "missing": (None, "'deep.weight' is missing"),
    "shape": (raw(ones.T), r"'deep.weight' has shape \(3, 2\), not \(2, 3\)"),
    "more dimensions": (raw(ones[None]), r"'deep.weight' has shape \(1, 2, 3\)"),
    "double": (raw(ones.astype(float)), "'deep.weight' is of type torch.float64, not torch.float32"),
    "whole numbers": (raw(ones.astype(np.int32)), "'deep.weight' is of type torch.int32"),
    "nan": (raw(ones * math.nan), "'deep.weight' is not finite"),
    "one infinity": (raw(np.where(np.arange(6).reshape(2, 3) == 4, np.inf, ones).astype(np.float32)), "is not finite"),
    "no array": (raw(ones, data=b"nonsense"), "'deep.weight' cannot be read"),
    "cut short": (raw(ones, data=raw(ones).data[:-4]), "'deep.weight' cannot be read"),
    "nothing": (raw(ones, data=b""), "'deep.weight' cannot be read"),
    "another writing": (raw(ones, stype="pickle"), "'deep.weight' cannot be read"),
    "words": (raw(np.array(["a", "b"])), "'deep.weight' cannot be read"),
    "an archive": (raw(ones, data=stored(lambda file: np.savez(file, ones))), "'deep.weight' cannot be read"),
    "objects": (raw(ones, data=stored(lambda file: np.save(file, np.array([{}]), allow_pickle=True))), "cannot be read"),
    "far too long": (raw(np.ones(10**6, np.float32)), "'deep.weight' has 4,000,128 bytes, not 24"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_tensor_is_named(kind):
    array, said = BROKEN[kind]
    arrays = {"deep.weight": array, "head.bias": raw(np.zeros(4, np.float32))}
    with pytest.raises(BadReply, match=said):
        read(reply_with(ArrayRecord({name: a for name, a in arrays.items() if a is not None})))


def test_a_strange_tensor_is_named():
    arrays = ArrayRecord({**EXPECTED, "tail.weight": torch.zeros(1)})
    with pytest.raises(BadReply, match=r"'tail.weight' is none that the plan trains"):
        read(reply_with(arrays))


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        *[(name, bad, name) for name in FIGURES for bad in (math.nan, math.inf, -1, [1, 2], [])],
        *[(name, 0.5, "a whole number") for name in FIGURES if name.endswith("bytes")],
        ("accuracy", 1.01, "a share"),
        ("num-examples", 6, "6 examples, but it has 5"),
        ("num-examples", 5.0, "a whole number"),
        ("bonus", 1, "'bonus' is none that a reply has"),
    ],
)
def test_a_figure_that_cannot_be_is_named(name, value, said):
    with pytest.raises(BadReply, match=said):
        read(reply_with(figures={**GOOD, name: value}))


@pytest.mark.parametrize("scope", ["saved", "peak"])
def test_one_byte_over_the_budget_is_one_too_many(scope):
    plan = replace(plan_for("20KB"), scope=scope)
    for held in (20_000, 20_001):
        reply = reply_with(figures={**GOOD, "saved-bytes": 5, "peak-bytes": 5, f"{scope}-bytes": held})
        if held == 20_000:
            assert read_reply(reply, EXPECTED, plan, 5)[1][f"{scope}_bytes"] == held
            continue
        with pytest.raises(BadReply, match=f"20,001 {scope} bytes, over the budget of 20,000"):
            read_reply(reply, EXPECTED, plan, 5)


@pytest.mark.parametrize("name", FIGURES)
def test_a_missing_figure_is_named(name):
    with pytest.raises(BadReply, match=f"'{name}' is missing"):
        read(reply_with(figures={other: value for other, value in GOOD.items() if other != name}))


def read_segmentation(class_iou, classes=3, **others):
    figures = {**GOOD, "class-iou": class_iou, **others} if class_iou is not None else GOOD
    return read_reply(reply_with(figures=figures), EXPECTED, plan_for("20KB"), examples=5, classes=classes)[1]


def test_an_iou_for_each_class_is_read_with_none_for_a_class_that_is_not_there():
    figures = read_segmentation([0.25, math.nan, 1.0])
    assert figures == {**{name.replace("-", "_"): value for name, value in GOOD.items()}, "class_iou": [0.25, None, 1.0]}
    nothing = read_segmentation([math.nan] * 3, accuracy=math.nan)
    assert (nothing["accuracy"], nothing["class_iou"]) == (None, [None] * 3)
    assert read_segmentation([0, 1, 1])["class_iou"] == [0, 1, 1]


@pytest.mark.parametrize(
    ("class_iou", "said"),
    [
        (None, "'class-iou' is missing"),
        (0.5, "is 0.5, and must be a list of 3"),
        ([], "a list of 0, and must be a list of 3"),
        ([0.5] * 4, "a list of 4, and must be a list of 3"),
        ([0.5, 1.01, 0.5], "1.01 for class 1"),
        ([0.5, math.nan, -0.01], "-0.01 for class 2"),
        ([math.inf, 0.5, 0.5], "inf for class 0"),
        ([2, 0, 0], "2 for class 0"),
    ],
)
def test_a_class_iou_that_cannot_be_is_named(class_iou, said):
    with pytest.raises(BadReply, match=said):
        read_segmentation(class_iou)


@pytest.mark.parametrize(("class_iou", "accuracy"), [([math.nan] * 3, 0.5), ([0.5, 0.5, math.nan], math.nan)])
def test_a_score_without_an_iou_and_an_iou_without_a_score_are_refused(class_iou, accuracy):
    with pytest.raises(BadReply, match="'accuracy' is NaN where some class has an IoU, or a share where none has"):
        read_segmentation(class_iou, accuracy=accuracy)


def test_a_classifiers_reply_has_no_class_iou():
    with pytest.raises(BadReply, match="'class-iou' is none that a reply has"):
        read_segmentation([0.5] * 3, classes=None)


@pytest.mark.parametrize("gone", ["arrays", "metrics"])
@pytest.mark.parametrize("instead", [None, ConfigRecord({"a": 1})])
def test_a_reply_without_tensors_or_figures_is_none(gone, instead):
    with pytest.raises(BadReply, match="no tensors or no figures"):
        read(reply_with(**{gone: instead}) if gone == "metrics" else reply_with_arrays_replaced(instead))


def reply_with_arrays_replaced(instead) -> Message:
    reply = reply_with()
    del reply.content["arrays"]
    if instead is not None:
        reply.content["arrays"] = instead
    return reply


def test_silence_and_flowers_errors_are_no_replies():
    with pytest.raises(NoReply, match="before the deadline"):
        read(None)
    with pytest.raises(NoReply, match="node is gone"):
        read(Message(Error(3, "node is gone"), reply_to=order()))
    with pytest.raises(NoReply, match="error 3"):
        read(Message(Error(3, None), reply_to=order()))


def test_an_exception_comes_back_with_its_traceback():
    def train(message, context):
        raise ArithmeticError("it was too much")

    with pytest.raises(NoReply, match="ArithmeticError: it was too much") as raised:
        read(report_exceptions(order(), None, train))
    assert not isinstance(raised.value, BadReply)
    assert raised.value.traceback.startswith("Traceback")
    assert "in train" in raised.value.traceback


def test_a_traceback_through_a_graph_says_nothing_of_the_graphs_before_it():
    def train(message, context):
        return fx.symbolic_trace(nn.Sequential(nn.Linear(2, 2)))(torch.ones(1, 3))

    def said() -> str:
        with pytest.raises(NoReply, match="RuntimeError") as raised:
            read(report_exceptions(order(), None, train))
        return raised.value.traceback

    first = said()
    assert "in forward" in first
    assert first == said()


def test_ctrl_c_is_not_a_clients_exception():
    def train(message, context):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        report_exceptions(order(), None, train)


# Whatever a reply holds ----------------------------------------------------------------------------------------------------

number = st.floats(width=32) | st.sampled_from([math.nan, math.inf, -math.inf, 3.4e38, -3.4e38, 0.0])
tensors = st.fixed_dictionaries({
    name: st.lists(number, min_size=like.numel(), max_size=like.numel()) for name, like in EXPECTED.items()
})  # fmt: skip
edits = st.sampled_from(["", "", "missing", "extra", "shape", "type"])
replies = st.lists(st.tuples(tensors, edits, st.integers(0, 2**40)), max_size=6)


def edited(numbers, edit: str, examples: int) -> Message:
    arrays = {name: np.float32(v).reshape(tuple(EXPECTED[name].shape)) for name, v in numbers.items()}
    first = arrays["deep.weight"]
    changes = {
        "missing": {"deep.weight": None}, "extra": {"more": first}, "shape": {"deep.weight": first.T},
        "type": {"deep.weight": first.astype(np.float16)},
    }  # fmt: skip
    arrays |= changes.get(edit, {})
    record = ArrayRecord({name: Array(np.ascontiguousarray(a)) for name, a in arrays.items() if a is not None})
    return reply_with(record, {**GOOD, "num-examples": examples})


@examples(25)
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
@given(replies)
def test_the_mean_of_what_is_let_through_is_finite_and_within_the_updates_range(fleet):
    mean, let_through = RunningMean(), []
    for numbers, edit, count in fleet:
        try:
            update, figures = read_reply(edited(numbers, edit, count), EXPECTED, plan_for("20KB"), count)
        except BadReply:
            assert edit or not np.isfinite(np.float32([*numbers["deep.weight"], *numbers["head.bias"]])).all()
            continue
        assert not edit
        mean.add(update, figures["num_examples"])
        let_through += [update] * (count > 0)
    for name, tensor in mean.over(EXPECTED).items():
        stacked = torch.stack([update[name] for update in let_through] or [EXPECTED[name]])
        assert bool(torch.isfinite(tensor).all())
        assert bool(((tensor >= stacked.amin(0)) & (tensor <= stacked.amax(0))).all())


# Their order ---------------------------------------------------------------------------------------------------------------


def from_node(node: int):
    return SimpleNamespace(metadata=SimpleNamespace(src_node_id=node))


@given(st.sets(st.integers(0, 50), max_size=12), st.randoms(use_true_random=False), st.data())
def test_replies_are_taken_in_by_client_number_whatever_comes_first(clients, random, data):
    nodes = {1000 + 7 * (client % 5) + client: client for client in sorted(clients)}
    answering = [node for node in nodes if data.draw(st.booleans())]
    arriving = [from_node(node) for node in [*answering, *answering[:2], 99]]
    random.shuffle(arriving)
    seen = list(in_order(arriving, nodes))
    assert [client for client, _ in seen] == sorted(clients)
    assert [client for client, reply in seen if reply is not None] == sorted(nodes[node] for node in answering)
    assert all(nodes[reply.metadata.src_node_id] == client for client, reply in seen if reply is not None)


def test_replies_that_come_in_order_are_not_kept():
    asked = []

    def arriving():
        for node in range(5):
            asked.append(node)
            yield from_node(node)

    for count, (client, _) in enumerate(in_order(arriving(), {node: node for node in range(5)}), start=1):
        assert (client, len(asked)) == (count - 1, count)
