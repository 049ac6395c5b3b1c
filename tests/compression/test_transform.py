"""Transform coding against scipy's transform, its own promises, and a plain count of what its code could be."""

import math
import tracemalloc

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.fft import dctn

from fedact.compression import make_method
from fedact.compression.method import Compressed
from fedact.compression.operations import Convolution
from fedact.compression.transform.bitstream import DECODED_BYTES, nonzeros
from fedact.compression.transform.cosine import adjoint, as_images, frequencies, from_images, images_of, inverse, transform
from fedact.compression.transform.transform import Transform
from fedact.measure.cost import FlopCounter
from fedact.measure.memory import measure_memory
from fedact.planner.stand_in import Geometry
from fedact.planner.working_memory import WorkingMemory
from tests.support.laws import INPUTS
from tests.support.portions import examples

shapes = st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 9), st.integers(1, 9))
kinds = st.sampled_from(sorted(INPUTS))


def smooth(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    """Maps with most of their energy at low frequencies, and channels of different size."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).cumsum(2).cumsum(3)
    return x * torch.logspace(0, -2, shape[1])[:, None, None]


def drawn(shape: tuple[int, ...], kind: str, seed: int) -> torch.Tensor:
    return INPUTS[kind](shape, torch.Generator().manual_seed(seed))


def weighted(x: torch.Tensor, fall: float) -> torch.Tensor:
    """Scipy's cosine transform, and the weights as their definition says."""
    height, width = x.shape[2:]
    weights = [(1 + (torch.arange(n, dtype=torch.float64) * 7 / n) ** 2) ** -fall for n in (height, width)]
    return torch.from_numpy(dctn(x.double().numpy(), axes=(2, 3), norm="ortho")) * weights[0][:, None] * weights[1]


@given(shapes, st.sampled_from([0.0, 0.25, 0.5]), st.integers(0, 99))
def test_coefficients_are_scipys_weighted_and_come_back(shape, fall, seed):
    x = drawn(shape, "gaussian", seed)
    by = frequencies(*shape[2:], fall)
    found = transform(as_images(x), by)
    assert torch.allclose(from_images(found, shape).double(), weighted(x, fall), atol=1e-5)
    assert torch.allclose(from_images(inverse(found, by), shape), x, atol=1e-5)


@given(st.sampled_from([33, 64, 97, 128, 256]), st.sampled_from([0.25, 0.5]), st.integers(1, 3), st.integers(0, 99))
def test_of_long_series_they_are_too_and_the_inverses_adjoint_moves_over(steps, fall, batch, seed):
    x = drawn((batch, 4, steps), "gaussian", seed)
    by, as_column = frequencies(steps, 1, fall), x[..., None]
    found = transform(as_images(x), by)
    assert torch.allclose(from_images(found, x.shape)[..., None].double(), weighted(as_column, fall), atol=1e-5)
    assert torch.allclose(from_images(inverse(found, by), x.shape), x, atol=1e-5)
    other = torch.randn(found.shape, generator=torch.Generator().manual_seed(seed))
    products = (inverse(found, by) * other).sum(), (found * adjoint(other, by)).sum()
    assert torch.allclose(*products, rtol=1e-4, atol=1e-4)
    places = torch.arange(0, steps, 7)
    assert torch.allclose(
        images_of(places.numpy(), by), inverse(torch.eye(steps).view(1, steps, 1, -1), by)[0, :, 0].T[places]
    )


@pytest.mark.parametrize("shape", [(1, 32, 128), (1, 192, 197)], ids=["series", "tokens"])
def test_a_long_series_takes_no_more_work_space_than_a_map_of_as_many_positions(shape):
    maps = (1, shape[1], 16, -(-shape[2] // 16))
    likes = [Geometry(torch.Size(each), torch.empty(each).stride()) for each in (shape, maps)]
    series, one_map = (WorkingMemory().bytes(Transform(bits=1), like, 4) for like in likes)
    assert series.encoding <= 1.05 * one_map.encoding
    assert series.decoding <= 1.5 * one_map.decoding


@given(shapes, kinds, st.integers(0, 99), st.floats(0.05, 12))
@examples(150)
def test_bits_are_kept_to_the_byte_whatever_is_in_the_tensor(shape, kind, seed, bits):
    method, x = Transform(bits=bits, derive=0), drawn(shape, kind, seed)
    first = method.compress(x)
    # From any state: that of the tensor itself, and that of one a thousand times larger or smaller.
    others = [method.compress(x, method.compress(x * scale).state) for scale in (1, 1e3, 1e-3)]
    assert {one.tensors[0].nbytes for one in (first, *others)} == {method.predicted_bytes(shape)}


def lost_share(method: Transform, x: torch.Tensor) -> float:
    """The share of the weighted energy that is lost."""
    difference = weighted(method.reconstruct(method.compress(x)), 0.5) - weighted(x, 0.5)
    return float(difference.square().sum() / weighted(x, 0.5).square().sum().clamp_min(1e-30))


@given(shapes, kinds, st.integers(0, 99), st.floats(0.3, 0.9999))
@examples(150)
def test_the_variance_is_kept(shape, kind, seed, variance):
    x = drawn(shape, kind, seed)
    assert lost_share(Transform(variance=variance, derive=0), x) <= (1 - variance) * 1.001 + 1e-8


@pytest.mark.parametrize("kind", sorted(INPUTS))
@pytest.mark.parametrize("variance", [0.8, 0.96, 0.99])
def test_the_code_does_not_hang_on_the_state(kind, variance):
    method, x = Transform(variance=variance, derive=0), drawn((8, 24, 7, 7), kind, 0)
    first = method.compress(x)
    for scale in (1, 1e3, 1e-3):
        assert torch.equal(method.compress(x, method.compress(x * scale).state).tensors[0], first.tensors[0])


@pytest.mark.parametrize("variance", [0.5, 0.9, 0.99])
def test_no_more_variance_is_kept_than_a_sixteenth_of_an_octave_of_the_step_buys(variance):
    method, x = Transform(variance=variance, derive=0), smooth((8, 32, 7, 7))
    assert lost_share(method, x) > 0.8 * (1 - variance)


@pytest.mark.parametrize("bits", [0.2, 0.5, 1.0, 2.0])
def test_the_bits_that_are_allowed_are_used(bits):
    method, x = Transform(bits=bits, derive=0), smooth((16, 32, 7, 7))
    (packed,) = method.compress(x).tensors
    used = int(packed.nonzero().max()) + 1
    assert used > 0.95 * len(packed)


@pytest.mark.parametrize("bits", [0.3, 1.0, 3.0])
def test_the_code_is_near_the_rate_that_reverse_water_filling_allows(bits):
    """Gaussian cells of known variances: the least bits for the error that was made, by the theory."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.logspace(1, -2, 64)[:, None, None]
    x = torch.randn(64, 64, 7, 7, generator=generator) * sizes
    method = Transform(bits=bits, derive=0)
    compressed = method.compress(x)
    by = frequencies(7, 7, 0.5)
    mine, theirs = (transform(as_images(each), by).double() for each in (method.reconstruct(compressed), x))
    variances = theirs.square().mean(0)
    error = float((mine - theirs).square().mean(0).sum())
    low, high = 1e-12, float(variances.max())
    for _ in range(100):
        water = math.sqrt(low * high)
        low, high = (water, high) if float(variances.clamp_max(water).sum()) < error else (low, water)
    least = float((variances / low).log2().clamp_min(0).sum()) / 2 * len(x)
    # A uniform step costs at most a quarter bit a coefficient; Rice's code, zeros and tables a little more.
    assert 8 * compressed.tensors[0].nbytes < 1.25 * least + 0.3 * float((variances > low).sum()) * len(x) + 8 * 200


def test_with_both_the_variance_is_kept_where_the_bits_allow_it():
    x = smooth((8, 32, 7, 7))
    sizes = [make_method(text).compress(x).tensors[0].nbytes for text in ("transform:variance=0.99", "transform:bits=0.1")]
    both = [Transform(variance=0.99, bits=bits).compress(x).tensors[0].nbytes for bits in (8, 0.1)]
    assert both[0] == sizes[0]
    assert both[1] <= sizes[1] < sizes[0]


def test_a_large_tensor_is_coded_in_less_memory_than_its_own():
    x = smooth((32, 96, 28, 28)).to(memory_format=torch.channels_last)
    for text in ("transform:variance=0.96", "transform:bits=0.3"):
        with measure_memory(torch.nn.Identity(), inputs=x) as memory:
            make_method(text).compress(x)
        assert memory.peak_bytes <= x.nbytes


@given(
    st.tuples(st.integers(1, 4), st.integers(100, 260), st.integers(1, 5), st.integers(1, 5)),
    st.integers(1, 200),
    st.sampled_from([0.3, 0.7, 0.96]),
    st.booleans(),
    st.integers(0, 99),
)
def test_pointwise_layers_of_few_coefficients_are_those_of_the_decoded_input(shape, outputs, variance, last, seed):
    generator = torch.Generator().manual_seed(seed)
    layer, x = torch.nn.Conv2d(shape[1], outputs, 1), smooth(shape, seed)
    x = x.to(memory_format=torch.channels_last) if last else x
    grad_output = torch.randn(shape[0], outputs, *shape[2:], generator=generator)
    method, operation = Transform(variance=variance), Convolution.of(layer)
    compressed = method.compress(x)
    decoded, weight = method.reconstruct(compressed).double(), layer.weight.detach()
    gradient = method.weight_gradient(compressed, grad_output, weight, operation)
    expected = torch.einsum("bohw,bchw->oc", grad_output.double(), decoded)[..., None, None]
    assert (gradient - expected).norm() <= 1e-5 * decoded.norm() * grad_output.norm()
    output = method.output(compressed, weight, layer.bias.detach(), operation)
    expected = torch.nn.functional.conv2d(decoded, weight.double(), layer.bias.detach().double())
    assert (output - expected).norm() <= 1e-5 * (1 + decoded.norm() * weight.norm())


def test_the_few_coefficients_themselves_are_multiplied():
    """Where they are few; the working memory is then no more than the decoded input's."""
    x = smooth((16, 320, 7, 7))
    method, weight = Transform(variance=0.9), torch.randn(1280, 320, 1, 1)
    compressed, grad_output = method.compress(x), torch.randn(16, 1280, 7, 7)
    operation = Convolution.of(torch.nn.Conv2d(320, 1280, 1))
    for call in (
        lambda: method.weight_gradient(compressed, grad_output, weight, operation),
        lambda: method.output(compressed, weight, None, operation),
    ):
        with FlopCounter() as counter, torch.no_grad():
            result = call()
        assert 0 < counter.total < 0.2 * 2 * 16 * 49 * 320 * 1280
        with measure_memory(torch.nn.Identity(), inputs=x) as memory, torch.no_grad():
            call()
        assert memory.peak_bytes - result.nbytes < 1.4 * x.nbytes


@pytest.mark.parametrize(
    "text", ["transform:bits=16", "transform:bits=1", "transform:variance=0.9", "transform:variance=0.9999"]
)
def test_the_ledger_counts_as_much_as_numpy_takes(text):
    method = make_method(text)
    for x, state in method.worst_cases(smooth((8, 32, 14, 14))):
        compressed = method.compress(x, state)
        for call in (lambda x=x, state=state: method.compress(x, state), lambda kept=compressed: method.reconstruct(kept)):
            with measure_memory(torch.nn.Identity(), inputs=x) as memory:
                call()
            tracemalloc.start()
            call()
            taken = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert taken <= memory.peak_bytes + 20_000


@pytest.mark.parametrize("bits", [0, -1, 17])
@pytest.mark.parametrize("setting", ["bits", "variance"])
def test_what_is_out_of_range_is_refused(setting, bits):
    with pytest.raises(ValueError, match=f"{setting} is above 0"):
        make_method(f"transform:{setting}={bits}")


@pytest.mark.parametrize("shape", [(1, 3, 20, 20), (8, 4, 18, 18), (4, 6, 7, 7), (2, 96, 28, 28)])
def test_decoding_a_few_frequencies_by_themselves_takes_no_more_memory_than_all_of_them(shape):
    method, x = make_method("transform:bits=0.3"), torch.randn(shape, generator=torch.Generator().manual_seed(0))

    def working(compressed: Compressed) -> int:
        with measure_memory(torch.nn.Identity(), inputs=compressed.tensors) as memory, torch.no_grad():
            decoded = method.reconstruct(compressed)
        return memory.peak_bytes - decoded.nbytes

    compressed = method.compress(x)
    of_numbers = DECODED_BYTES * nonzeros(compressed.tensors[0].numpy())
    assert working(compressed) <= working(method.compress(torch.zeros(shape))) + of_numbers + x.nbytes
