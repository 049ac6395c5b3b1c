"""The ledger against independent measurements, and against everything that hooks cannot see."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.distributed._tools.mem_tracker import MemTracker, _MemRefType
from torchvision.models import mobilenet_v2

import fedact
from fedact.measure.memory import Memory
from tests.support.laws import EVERY_SETTING
from tests.support.networks import MODELS, batch, measure, packed_bytes, train
from tests.support.portions import examples, rotated

# Golden values -------------------------------------------------------------------------------------------------------------

GOLDEN = {2: (13.1, 4.0, 4.2), 4: (28.7, 7.5, 7.9), 6: (41.2, 13.5, 14.0)}
"""layers: vanilla saved, paper, and exact saved MB, of MobileNetV2, batch 16 at 224 px (measured before fedact was written).
Exact kept a mask then for each ReLU6; those before a trained convolution need none, for its input tells as much.

It does not say how many classes: log-softmax adds 64 bytes a class, and 10 classes give its figures."""


@pytest.fixture(scope="module")
def golden() -> dict[int, tuple[Memory, Memory]]:
    model = mobilenet_v2(num_classes=10)
    x, y = torch.zeros(16, 3, 224, 224), torch.zeros(16, dtype=torch.long)
    measured = {}
    for layers in GOLDEN:
        pair = []
        for method in ("vanilla", "exact"):
            fedact.compress(model, method, layers=layers)
            pair.append(measure(model, lambda: train(model, x, y), (x, y)))
            model.zero_grad()
        measured[layers] = tuple(pair)
    return measured


@pytest.mark.parametrize("layers", GOLDEN)
def test_mobilenet_at_224_px_holds_what_the_design_measured(golden, layers):
    vanilla, exact = golden[layers]
    masks = {2: 0, 4: 2 * 16 * 960 * 7 * 7 // 8, 6: 2 * 16 * 960 * 7 * 7 // 8 + 16 * 960 * 7 * 7 // 8}[layers]
    megabytes = (vanilla.saved_bytes / 1e6, vanilla.paper_bytes / 1e6, (exact.saved_bytes + masks) / 1e6)
    assert megabytes == pytest.approx(GOLDEN[layers], abs=0.0501)


@pytest.mark.parametrize("layers", GOLDEN)
def test_mobilenet_at_224_px_peaks_at_167_mb(golden, layers):
    assert golden[layers][0].peak_bytes / 1e6 == pytest.approx(167, abs=0.5)


def test_exact_and_vanilla_have_the_same_paper_bytes(golden):
    assert all(vanilla.paper_bytes == exact.paper_bytes for vanilla, exact in golden.values())


# Against saved_tensors_hooks -----------------------------------------------------------------------------------------------


AT_ONCE = [text for text in EVERY_SETTING if text != "checkpoint"]
"""Methods that hold the most at the end of the forward pass; a recomputation holds more later."""


@rotated(4, method=AT_ONCE, build=MODELS, size=[1, 7])
def test_saved_bytes_are_what_hooks_see_and_nothing_is_hidden(build, method, size):
    torch.manual_seed(size)
    model, (x, y) = fedact.compress(build(), method, layers=2), batch(size)
    memory = measure(model, lambda: train(model, x, y), (x, y))
    assert memory.saved_bytes == packed_bytes(model, x, y)
    assert memory.hidden_bytes == 0
    assert sum(memory.by_layer.values()) == memory.saved_bytes - memory.state_bytes
    assert memory.peak_bytes >= memory.saved_bytes


STEADY = [text for text in AT_ONCE if not text.startswith(("asi:variance", "lance:variance"))]
"""Methods whose bytes do not hang on which batch came first."""


@examples(25)
@given(st.sampled_from(MODELS), st.sampled_from(STEADY), st.integers(1, 9),
       st.integers(1, 9))  # fmt: skip
def test_micro_batches_hold_the_maximum_and_not_the_sum(build, method, size, part):
    torch.manual_seed(0)
    model, (x, y) = fedact.compress(build(), method, layers=2), batch(size)

    def loop() -> None:
        for a, b in zip(x.split(part), y.split(part), strict=True):
            (F.cross_entropy(model(a), b) * (len(b) / size)).backward()

    assert measure(model, loop, (x, y)).saved_bytes == max(
        packed_bytes(model, a, b) for a, b in zip(x.split(part), y.split(part), strict=True)
    )


# Against MemTracker --------------------------------------------------------------------------------------------------------


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 50), nn.GELU(), nn.Linear(50, 5))


class ActivationTracker(MemTracker):
    """MemTracker whose peak leaves out parameters, buffers, gradients, optimizer state and what was given."""

    highest = 0

    def _update_peak_stats(self, peak_state):
        kinds = (_MemRefType.ACT, _MemRefType.TEMP)
        now = sum(snapshot[kind] for snapshot in self._curr_mem_snap.values() for kind in kinds)
        self.highest = max(self.highest, now)


@pytest.mark.parametrize("build", [*MODELS, perceptron])
@pytest.mark.parametrize("size", [2, 6])
def test_the_peak_is_mem_trackers_to_the_byte(build, size):
    torch.manual_seed(0)
    model, (x, y) = build(), batch(size)
    ours = measure(model, lambda: train(model, x, y), (x, y)).peak_bytes
    model.zero_grad()
    tracker = ActivationTracker()
    tracker.track_external(model, x, y)
    with tracker:
        train(model, x, y)
    assert ours == tracker.highest


def test_what_is_made_from_numbers_or_an_array_was_not_there_before():
    with fedact.measure_memory(nn.Identity(), inputs=()) as memory:
        torch.zeros(1_000)
        kept = [torch.tensor([1.0] * 100), torch.from_numpy(np.ones(100, np.float32))]
    assert len(kept) == 2
    assert memory.peak_bytes == 4_000
