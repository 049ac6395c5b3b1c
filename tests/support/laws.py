"""What every method must obey, at every setting, on every operation and input."""

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from fedact.compression import METHODS, Method, make_method, method_name

GENTLEST = {
    "vanilla": "vanilla",
    "exact": "exact",
    "checkpoint": "checkpoint",
    "hosvd": "hosvd:variance=1.0",
    "tucker": "tucker:variance=1.0",
    "svd": "svd:variance=1.0",
    "channel_svd": "channel_svd:variance=1.0",
    "asi": "asi:variance=1.0",
    "lance": "lance:variance=1.0",
    "gradient_filter": "gradient_filter:patch=1",
    "quantize": "quantize:bits=8,group=16",
    "transform": "transform:bits=16,derive=0",
    "division": "division:block=1,bits=8",
    "topk": "topk:share=1",
    "random_projection": "random_projection:ratio=1",
}
"""The setting of each method that loses nothing but rounding."""
ROUNDING = {"quantize": 2e-2, "transform": 1e-3, "division": 1e-3}
"""How far the gentlest setting may be off, relatively, where it is not float32's own rounding."""
LOSSY = [
    "hosvd",
    "hosvd:variance=0.5",
    "hosvd:ranks=1x2x2x2",
    "hosvd:variance=0.8,truncation=sequential",
    "hosvd:ranks=2x3x2x1,truncation=sequential",
    "hosvd:variance=0.9,bits=8",
    "hosvd:variance=0.9,bits=4",
    "hosvd:variance=0.8,solver=svd",
    "hosvd:variance=0.8,batch=false",
    "hosvd:variance=0.8,mean=true",
    "hosvd:ranks=2x2x2,truncation=sequential,bits=8,solver=svd,batch=false,mean=true",
    "tucker:ranks=1x2x2x2",
    "tucker:variance=0.7",
    "svd:variance=0.6",
    "svd:ranks=1",
    "channel_svd:variance=0.6",
    "channel_svd:ranks=1",
    "asi:variance=0.8",
    "asi:ranks=2x2x2x2",
    "lance:variance=0.8",
    "lance:ranks=2x2x2",
    "gradient_filter:patch=2",
    "gradient_filter:patch=4",
    "gradient_filter:patch=7",
    "quantize:bits=8",
    "quantize:bits=4",
    "quantize:bits=2",
    "transform",
    "transform:variance=0.8",
    "transform:bits=0.5,derive=0",
    "transform:variance=0.99,bits=1.5",
    "division",
    "division:block=3,bits=4",
    "topk",
    "topk:share=0.02",
    "random_projection",
    "random_projection:ratio=0.5",
]
"""Settings that really lose something."""

MADE_AGAIN = ["exact:derive=2", "transform:derive=2", "hosvd:variance=0.9,derive=1"]
"""Settings that keep fewer tensors, and make others again."""

EVERY_SETTING = [*GENTLEST.values(), *LOSSY, *MADE_AGAIN]

ALONE = list(dict.fromkeys(method_name(make_method(text).codec) for text in EVERY_SETTING))
"""The same for layers that are looked at alone, without the one whose input theirs is made again from."""

assert set(GENTLEST) == set(METHODS), "a new method needs its gentlest setting here"


def gaussian(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator)


def decaying(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Energy that falls off along every mode, as in real activations."""
    x = torch.randn(shape, generator=generator)
    for mode, size in enumerate(shape):
        view = [size if position == mode else 1 for position in range(len(shape))]
        x = x * (0.5 ** torch.arange(size)).view(view)
    return x


def relu6_like(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return (3 * torch.randn(shape, generator=generator)).clamp(0, 6)


def constant(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.full(shape, 1.5)


def zeros(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.zeros(shape)


INPUTS = {f.__name__: f for f in (gaussian, decaying, relu6_like, constant, zeros)}


@dataclass(frozen=True)
class Case:
    """A plain convolution, an input, and an output gradient."""

    layer: nn.Conv2d
    x: Tensor
    grad_output: Tensor


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Convolutions of every geometry over every kind of input, down to a single example."""
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    inputs = groups * draw(st.integers(1, 4))
    outputs = groups * draw(st.integers(1, 3))
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 5)))
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    stride = draw(st.tuples(st.integers(1, 3), st.integers(1, 2)))
    mode = draw(st.sampled_from(["zeros", "zeros", "reflect", "replicate", "circular"]))
    paddings = st.tuples(st.integers(0, 2), st.integers(0, 3))
    padding = draw(st.one_of(paddings, st.just("valid"), st.just("same") if stride == (1, 1) else paddings))
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    size = [draw(st.integers(max(r, 4), r + 6)) for r in reach]
    seed = draw(st.integers(0, 2**31))
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layer = nn.Conv2d(
            inputs, outputs, kernel, stride, padding, dilation, groups, bias=draw(st.booleans()), padding_mode=mode
        )
    x = INPUTS[draw(st.sampled_from(sorted(INPUTS)))]((draw(st.integers(1, 4)), inputs, *size), generator)
    with torch.no_grad():
        grad_output = torch.randn(layer(x).shape, generator=generator)
    return Case(layer, x, grad_output)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm().clamp_min(1e-12))


def method(text: str) -> Method:
    return make_method(text)
