"""Cases that laws are checked on, each made from a few numbers, so that its text makes it again."""

from dataclasses import MISSING, dataclass, fields
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from fedact.compression.matrix_product import channels_last, channels_second
from fedact.compression.method import Method
from fedact.laws.inputs import INPUTS


class Case:
    """A frozen dataclass whose text names what is not its default, and reads back as the same case."""

    def __repr__(self) -> str:
        written = [(field.name, getattr(self, field.name), field.default) for field in fields(self)]  # type: ignore[arg-type]
        given = (f"{name}={value!r}" for name, value, default in written if default is MISSING or value != default)
        return f"{type(self).__name__}({', '.join(given)})"


@dataclass(frozen=True, repr=False)
class TensorCase(Case):
    """A tensor to keep; over_last: its channels lie side by side in memory, as in a linear layer's input.

    >>> TensorCase((2, 3), "constant").x.tolist()
    [[1.5, 1.5, 1.5], [1.5, 1.5, 1.5]]
    >>> TensorCase((2, 3), "constant", seed=0)
    TensorCase(shape=(2, 3), kind='constant')
    """

    shape: tuple[int, ...]
    kind: str = "gaussian"
    seed: int = 0
    over_last: bool = False

    @cached_property
    def x(self) -> Tensor:
        """The tensor."""
        batch, *others = self.shape
        shape = (batch, *others[1:], others[0]) if self.over_last else self.shape
        x = INPUTS[self.kind](shape, torch.Generator().manual_seed(self.seed))
        return channels_second(x) if self.over_last else x


@dataclass(frozen=True, repr=False)
class StepsCase(Case):
    """Inputs of one layer, step after step: examples of one shape in batches of several sizes."""

    shape: tuple[int, ...] = (6, 5, 4)
    batches: tuple[int, ...] = (4, 4, 1, 6, 4)
    kind: str = "gaussian"
    seed: int = 0

    @cached_property
    def inputs(self) -> tuple[Tensor, ...]:
        """The tensors, one a step."""
        generator = torch.Generator().manual_seed(self.seed)
        return tuple(INPUTS[self.kind]((batch, *self.shape), generator) for batch in self.batches)


class LayerCase(Case):
    """A plain layer, an input and an output gradient.

    layers: what ``compress`` is told for a model of this layer and ``others``: 0 where it is the head.
    """

    layers: ClassVar[int]

    @property
    def others(self) -> tuple[nn.Module, ...]:
        """The layers behind it, which are not run."""
        return ()

    @cached_property
    def layer(self) -> nn.Module:
        """The layer."""
        raise NotImplementedError

    @cached_property
    def tensors(self) -> tuple[Tensor, Tensor]:
        """The input, and the output gradient."""
        raise NotImplementedError

    @property
    def x(self) -> Tensor:
        """The input."""
        return self.tensors[0]

    @property
    def grad_output(self) -> Tensor:
        """The gradient of the output."""
        return self.tensors[1]

    def rebuilt(self, method: Method) -> Tensor:
        """Return the input that the backward pass sees."""
        return method.reconstruct(method.compress(self.x))


def drawn(layer: nn.Module, shape: tuple[int, ...], kind: str, seed: int) -> tuple[Tensor, Tensor]:
    """Return an input of a layer, and a gradient of its output, both from one seed."""
    generator = torch.Generator().manual_seed(seed)
    x = INPUTS[kind](shape, generator)
    with torch.no_grad():
        return x, torch.randn(layer(x).shape, generator=generator)


Sides = int | tuple[int, ...]
"""One number for every side, or one a side."""


@dataclass(frozen=True, repr=False)
class ConvolutionCase(LayerCase):
    """A plain convolution, an input of this size (height and width, or the time of series), and an output gradient."""

    size: tuple[int, ...]
    in_channels: int = 1
    out_channels: int = 1
    kernel_size: Sides = 1
    stride: Sides = 1
    padding: Sides | str = 0
    dilation: Sides = 1
    groups: int = 1
    bias: bool = True
    padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros"
    batch: int = 1
    kind: str = "gaussian"
    seed: int = 0

    layers: ClassVar[int] = 1

    @cached_property
    def layer(self) -> nn.Module:
        """The convolution."""
        kind: Any = nn.Conv1d if len(self.size) == 1 else nn.Conv2d
        geometry = self.kernel_size, self.stride, self.padding, self.dilation, self.groups, self.bias, self.padding_mode
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            return kind(self.in_channels, self.out_channels, *geometry)  # type: ignore[no-any-return]

    @cached_property
    def tensors(self) -> tuple[Tensor, Tensor]:
        return drawn(self.layer, (self.batch, self.in_channels, *self.size), self.kind, self.seed)


@dataclass(frozen=True, repr=False)
class LinearCase(LayerCase):
    """A plain linear layer, an input whose last dimension are the features, and an output gradient."""

    shape: tuple[int, ...]
    out_features: int = 4
    bias: bool = True
    kind: str = "gaussian"
    seed: int = 0

    layers: ClassVar[int] = 0

    @cached_property
    def layer(self) -> nn.Module:
        """The linear layer."""
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            return nn.Linear(self.shape[-1], self.out_features, self.bias)

    @cached_property
    def tensors(self) -> tuple[Tensor, Tensor]:
        return drawn(self.layer, self.shape, self.kind, self.seed)

    def rebuilt(self, method: Method) -> Tensor:
        # Methods see channels second.
        return channels_last(method.reconstruct(method.compress(channels_second(self.x))))


@dataclass(frozen=True, repr=False)
class TokensCase(LinearCase):
    """A plain linear layer of a network's body, on tokens or on maps whose channels are last."""

    layers: ClassVar[int] = 1

    @property
    def others(self) -> tuple[nn.Module, ...]:
        return (nn.Linear(self.out_features, 1),)
