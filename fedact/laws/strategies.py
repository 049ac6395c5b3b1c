"""Hypothesis strategies: which cases laws are checked on; every failure shrinks to the smallest case that still fails."""

from typing import Any, Literal

from hypothesis import strategies as st

from fedact.laws.cases import ConvolutionCase, LinearCase, StepsCase, TensorCase, TokensCase
from fedact.laws.inputs import INPUTS

KINDS = st.sampled_from(sorted(INPUTS))
SEEDS = st.integers(0, 2**31)
MODES: list[Literal["zeros", "reflect", "replicate", "circular"]] = ["zeros", "zeros", "reflect", "replicate", "circular"]


@st.composite
def convolutions(draw: st.DrawFn) -> ConvolutionCase:
    """Draw convolutions of every geometry over every kind of input, down to a single example."""
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    in_channels = groups * draw(st.integers(1, 4))
    out_channels = groups * draw(st.integers(1, 3))
    kernel_size = draw(st.tuples(st.integers(1, 4), st.integers(1, 5)))
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    stride = draw(st.tuples(st.integers(1, 3), st.integers(1, 2)))
    padding_mode = draw(st.sampled_from(MODES))
    paddings = st.tuples(st.integers(0, 2), st.integers(0, 3))
    same: st.SearchStrategy[Any] = st.just("same") if stride == (1, 1) else paddings
    padding = draw(st.one_of(paddings, st.just("valid"), same))
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel_size, strict=True)]
    height, width = (draw(st.integers(max(r, 4), r + 6)) for r in reach)
    seed, bias = draw(SEEDS), draw(st.booleans())
    kind, batch = draw(KINDS), draw(st.integers(1, 4))
    geometry = kernel_size, stride, padding, dilation, groups, bias, padding_mode
    return ConvolutionCase((height, width), in_channels, out_channels, *geometry, batch, kind, seed)


@st.composite
def series(draw: st.DrawFn) -> ConvolutionCase:
    """Draw convolutions of series of every geometry."""
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    in_channels, out_channels = groups * draw(st.integers(1, 4)), groups * draw(st.integers(1, 3))
    kernel_size, dilation, stride = draw(st.integers(1, 5)), draw(st.integers(1, 2)), draw(st.integers(1, 3))
    padding_mode, paddings = draw(st.sampled_from(MODES)), st.integers(0, 3)
    padding = draw(st.one_of(paddings, st.sampled_from(["valid", "same"] if stride == 1 else ["valid"])))
    reach = dilation * (kernel_size - 1) + 1
    geometry = kernel_size, stride, padding, dilation, groups, draw(st.booleans()), padding_mode
    time = draw(st.integers(max(reach, 4), reach + 12))
    return ConvolutionCase((time,), in_channels, out_channels, *geometry, draw(st.integers(1, 4)), draw(KINDS), draw(SEEDS))


@st.composite
def tokens(draw: st.DrawFn) -> TokensCase:
    """Draw linear layers on tokens, and on maps of tokens."""
    positions = draw(st.sampled_from([(1,), (7,), (18,), (3, 5), (6, 6)]))
    # The weight of the last is so large beside its maps that its gradient is added to what is there.
    inputs, outputs = draw(st.one_of(st.tuples(st.integers(1, 8), st.integers(1, 9)), st.just((128, 129))))
    shape = (draw(st.integers(1, 4)), *positions, inputs)
    return TokensCase(shape, outputs, draw(st.booleans()), draw(KINDS), draw(SEEDS))


def inputs() -> st.SearchStrategy[TensorCase]:
    """Draw the inputs of all these layers, as methods see them."""
    of_series = series().map(lambda case: TensorCase((case.batch, case.in_channels, *case.size), case.kind, case.seed))
    of_tokens = tokens().map(
        lambda case: TensorCase((case.shape[0], case.shape[-1], *case.shape[1:-1]), case.kind, case.seed, over_last=True)
    )
    return st.one_of(images(), images(), of_series, of_tokens)


def images() -> st.SearchStrategy[TensorCase]:
    """Draw the inputs of such convolutions."""
    return convolutions().map(lambda case: TensorCase((case.batch, case.in_channels, *case.size), case.kind, case.seed))


@st.composite
def tensors(draw: st.DrawFn) -> TensorCase:
    """Draw tensors of two to five dimensions, the batch first."""
    shape = tuple(draw(st.lists(st.integers(1, 6), min_size=2, max_size=5)))
    return TensorCase(shape, draw(KINDS), draw(SEEDS))


def of_shapes(*shapes: tuple[int, ...]) -> st.SearchStrategy[TensorCase]:
    """Draw one of a few tensors, each of a seed of its own."""
    return st.sampled_from([TensorCase(shape) for shape in shapes])


def linears() -> st.SearchStrategy[LinearCase]:
    """Draw rows of features, and of tokens."""
    return st.sampled_from([LinearCase((6, 10)), LinearCase((3, 5, 8))])


def batches() -> st.SearchStrategy[StepsCase]:
    """Draw steps whose batches are of several sizes, over every kind of input."""
    return st.sampled_from([StepsCase(kind=kind) for kind in INPUTS])
