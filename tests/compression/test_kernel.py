"""The compiled loops against numpy's way: the same bytes, values and ledger, whatever is in the tensor."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedact.compression.method import NO_STATE, State
from fedact.compression.transform import bitstream, coefficients, fast
from fedact.compression.transform.bitstream import Decoded
from fedact.compression.transform.cosine import images_shape
from fedact.compression.transform.transform import Transform
from fedact.measure.memory import measure_memory
from tests.support.laws import INPUTS
from tests.support.portions import examples

pytest.importorskip("numba")
assert fast.kernel(fast.FEWEST)

sides = st.integers(1, 20)
shapes = st.one_of(
    st.tuples(st.integers(1, 4), st.integers(1, 40), sides, sides), st.tuples(st.integers(1, 6), st.integers(1, 90))
)
settings = st.one_of(
    st.builds(lambda bits: Transform(bits=bits), st.floats(0.05, 16)),
    st.builds(lambda variance: Transform(variance=variance), st.floats(0.05, 0.99999)),
)


def heavy_tailed(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Channels of very different size, and coefficients in every class, far apart and of many steps."""
    return (
        torch.randn(shape, generator=generator) ** 9
        * torch.randn(shape[1], *[1] * (len(shape) - 2), generator=generator).exp()
    )


KINDS = {**INPUTS, "heavy_tailed": heavy_tailed}


def coded(method: Transform, x: torch.Tensor, state: State) -> tuple[torch.Tensor, State, Decoded]:
    compressed = method.compress(x, state)
    batch, height, width, channels = images_shape(x.shape)
    rings = method._frequencies(height, width).rings
    return compressed.tensors[0], compressed.state, bitstream.read(compressed.tensors[0].numpy(), batch, channels, rings)


def in_numpy(patch: pytest.MonkeyPatch) -> None:
    for module in (bitstream, coefficients):
        patch.setattr(module, "kernel", lambda count=0: None)


@given(shapes, st.sampled_from(sorted(KINDS)), st.integers(0, 99), settings, st.sampled_from([0.0, 0.5, 1.0, 1e3]))
@examples(200)
def test_bytes_and_values_are_those_of_numpy(shape, kind, seed, method, scale):
    x = KINDS[kind](shape, torch.Generator().manual_seed(seed))
    state = method.compress(x * scale).state if scale else NO_STATE
    compiled = coded(method, x, state)
    with pytest.MonkeyPatch.context() as patch:
        in_numpy(patch)
        plain = coded(method, x, state)
    assert torch.equal(compiled[0], plain[0])
    assert torch.equal(compiled[1].tensors[0], plain[1].tensors[0])
    for one, other in zip(compiled[2][:4], plain[2][:4], strict=True):
        assert (one.dtype, one.tobytes()) == (other.dtype, other.tobytes())


@pytest.mark.parametrize("method", [Transform(variance=0.96), Transform(bits=2.0)])
def test_no_byte_of_the_ledger_hangs_on_what_is_installed(method, monkeypatch):
    x = heavy_tailed((8, 32, 14, 14), torch.Generator().manual_seed(0))

    def peaks() -> list[int]:
        compressed = method.compress(x)
        found = []
        for call in (lambda: method.compress(x), lambda: method.reconstruct(compressed)):
            with measure_memory(torch.nn.Identity(), inputs=x) as memory:
                call()
            found.append(memory.peak_bytes)
        return found

    compiled = peaks()
    in_numpy(monkeypatch)
    assert compiled == peaks()


@given(st.integers(0, 99), st.integers(1, 200), st.floats(0, 3))
def test_what_is_marked_is_taken(seed, count, threshold):
    loops, values = fast.kernel(), np.random.default_rng(seed).standard_normal(count, dtype=np.float32)
    mask = np.empty(count, dtype=np.bool_)
    loops.mark_above(values, threshold, mask)
    (places,) = (np.abs(values) > np.float32(threshold)).nonzero()
    found, taken = np.empty(len(places), dtype=np.int32), np.empty(len(places), dtype=np.float32)
    loops.take_marked(values, mask, mask[: count // 32 * 32].view(np.uint64).reshape(-1, 4), found, taken)
    assert found.tolist() == places.tolist()
    assert taken.tolist() == values[places].tolist()


def test_without_numba_nothing_is_compiled(monkeypatch):
    monkeypatch.setattr(fast, "find_spec", lambda name: None)
    assert fast._loaded.__wrapped__() is None


def test_where_nothing_can_be_kept_every_process_compiles(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("FEDACT_CACHE", str(tmp_path / "file"))
    assert fast._loaded.__wrapped__() is fast.kernel()
