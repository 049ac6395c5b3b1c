"""Methods that break a law each, and one that breaks none."""

from dataclasses import dataclass, replace
from math import prod
from typing import ClassVar

import torch
from torch import nn

from fedact.compression.method import NO_STATE, Compressed, Method, State, Traits, shape_of

CALLS = []
"""What a method must not have: a memory beside its state."""


@dataclass(frozen=True)
class Half(Method):
    """Stores the input in 16-bit floating point."""

    traits: ClassVar[Traits] = Traits(source="IEEE 754-2008, binary16", gentlest="", rounding=1e-3)

    def compress(self, x, state=NO_STATE):
        return Compressed((x.half(),), x.dtype)

    def reconstruct(self, compressed):
        return compressed.tensors[0].to(compressed.metadata)

    def predicted_bytes(self, x):
        return 2 * prod(shape_of(x))


@dataclass(frozen=True)
class WrongInputGradient(Half):
    def input_gradient(self, shape, grad_output, weight, operation):
        return 1.001 * super().input_gradient(shape, grad_output, weight, operation)


@dataclass(frozen=True)
class WrongWeightGradient(Half):
    def weight_gradient(self, compressed, grad_output, weight, operation):
        gradient = super().weight_gradient(compressed, grad_output, weight, operation)
        return gradient if grad_output.dim() < 4 else gradient.flip(-1)


@dataclass(frozen=True)
class WrongForRows(Half):
    def weight_gradient(self, compressed, grad_output, weight, operation):
        gradient = super().weight_gradient(compressed, grad_output, weight, operation)
        return gradient if grad_output.dim() == 4 else gradient + 1e-3


@dataclass(frozen=True)
class Flat(Half):
    def reconstruct(self, compressed):
        rebuilt = super().reconstruct(compressed)
        return rebuilt.flatten(2) if rebuilt.dim() == 5 else rebuilt


@dataclass(frozen=True)
class TooFewBytes(Half):
    def predicted_bytes(self, x):
        return prod(shape_of(x))


@dataclass(frozen=True)
class Hidden(Half):
    """Keeps the tensor where nobody counts it."""

    def compress(self, x, state=NO_STATE):
        return Compressed((x.half(),), {"dtype": x.dtype, "more": [x.clone()]})

    def reconstruct(self, compressed):
        return compressed.metadata["more"][0]


@dataclass(frozen=True)
class FollowsTheData(Half):
    """Says that shapes alone decide, and stores less of zeros."""

    def compress(self, x, state=NO_STATE):
        return Compressed((x.half() if x.any() else x.half()[:0].clone(),), (x.dtype, x.shape))

    def reconstruct(self, compressed):
        (stored,), (dtype, shape) = compressed.tensors, compressed.metadata
        return stored.to(dtype) if stored.numel() else torch.zeros(shape, dtype=dtype)

    def predicted_bytes(self, x):
        return 0 if isinstance(x, torch.Tensor) and not x.any() else super().predicted_bytes(x)


@dataclass(frozen=True)
class View(Half):
    def compress(self, x, state=NO_STATE):
        return Compressed((torch.cat([x, x]).half()[: len(x)],), x.dtype)


@dataclass(frozen=True)
class Pins(Half):
    """Stores the input itself, which pins what it is a view of."""

    def compress(self, x, state=NO_STATE):
        return Compressed((x,), x.dtype)

    def predicted_bytes(self, x):
        return 4 * prod(shape_of(x))


@dataclass(frozen=True)
class Loses(Half):
    def compress(self, x, state=NO_STATE):
        return Compressed((x.round().half(),), x.dtype)


@dataclass(frozen=True)
class Larger(Half):
    traits: ClassVar[Traits] = replace(Half.traits, gentlest=None)

    def compress(self, x, state=NO_STATE):
        return Compressed((x.double(),), x.dtype)

    def predicted_bytes(self, x):
        return 8 * prod(shape_of(x))


@dataclass(frozen=True)
class Rises(Half):
    scale: float = 1.0

    def levels(self, x, spectra=None):
        return {1.0: self, 2.0: replace(self, scale=2.0)}


@dataclass(frozen=True)
class GlobalNoise(Half):
    def compress(self, x, state=NO_STATE):
        return Compressed((x.half() + torch.rand(()).half() * 1e-3,), x.dtype)


@dataclass(frozen=True)
class InPlace(Half):
    def compress(self, x, state=NO_STATE):
        return super().compress(x.mul_(0.5), state)


@dataclass(frozen=True)
class ChangesStored(Half):
    def reconstruct(self, compressed):
        compressed.tensors[0].mul_(0.5)
        return super().reconstruct(compressed)


@dataclass(frozen=True)
class KeepsGraph(Half):
    def compress(self, x, state=NO_STATE):
        with torch.enable_grad():
            return Compressed(((x * 1.0).half(),), x.dtype)


@dataclass(frozen=True)
class Remembers(Half):
    """Hands the tensor on by a way of its own: the last one is what every layer gets."""

    def compress(self, x, state=NO_STATE):
        CALLS[:] = [x.clone()]
        return super().compress(x, state)

    def reconstruct(self, compressed):
        return CALLS[0]


@dataclass(frozen=True)
class SaysThatItKeepsTheInput(Half):
    traits: ClassVar[Traits] = replace(Half.traits, keeps_input=True)


@dataclass(frozen=True)
class WrongChannels(Half):
    def reconstruct_channels(self, compressed, channels):
        return self.reconstruct(compressed)[:, : len(channels)]


@dataclass(frozen=True)
class Hides(Half):
    """Makes numbers of what is not one."""

    def compress(self, x, state=NO_STATE):
        return super().compress(x.nan_to_num(0.0, 1.0, -1.0), state)


@dataclass(frozen=True)
class OneTypeAlone(Half):
    def reconstruct(self, compressed):
        return compressed.tensors[0].float()


@dataclass(frozen=True, eq=False)
class NoValue(Half):
    """Two of them with the same settings are different."""

    __hash__ = object.__hash__

    def __eq__(self, other):
        return self is other


@dataclass(frozen=True)
class Counts(Half):
    """Has a state: the number of steps, as a tensor."""

    def compress(self, x, state=NO_STATE):
        (count,) = state.tensors or (torch.zeros(1),)
        return super().compress(x)._replace(state=State((count + 1,)))

    def predicted_state_bytes(self, x):
        return 4


@dataclass(frozen=True)
class UndeclaredState(Counts):
    def predicted_state_bytes(self, x):
        return 0


@dataclass(frozen=True)
class ReadsState(Counts):
    def reconstruct(self, compressed):
        return super().reconstruct(compressed) * compressed.state.tensors[0].clamp(1, 1)


@dataclass(frozen=True)
class GrowingState(Counts):
    """Bounded for a shape, but another one for each size of a batch."""

    def compress(self, x, state=NO_STATE):
        return Half.compress(self, x)._replace(state=State((torch.zeros(len(x)),)))

    def predicted_state_bytes(self, x):
        return 4 * shape_of(x)[0]


@dataclass(frozen=True)
class MoreLater(Half):
    """Stores more in a second step than it says."""

    def compress(self, x, state=NO_STATE):
        copies = 1 if state.metadata is None else 2
        return Compressed((x.half(),) * 1 + (x.half(),) * (copies - 1), x.dtype, State((), copies))


@dataclass(frozen=True)
class RandomSteps(Half):
    """Draws from a generator that no seed decides."""

    def compress(self, x, state=NO_STATE):
        CALLS.append(len(CALLS))
        noise = torch.rand((), generator=torch.Generator().manual_seed(len(CALLS)))
        return Compressed((x.half() + 1e-2 * noise.half(),), x.dtype)


@dataclass(frozen=True)
class NeedsMore(Counts):
    """Goes on only from a state with metadata, which a loaded one has not."""

    def compress(self, x, state=NO_STATE):
        (count,) = state.tensors or (torch.zeros(1),)
        if state.tensors:
            assert state.metadata["steps"] > 0
        return Half.compress(self, x)._replace(state=State((count + 1,), {"steps": 1}))


@dataclass(frozen=True)
class OtherShape(Half):
    def reconstruct(self, compressed):
        rebuilt = super().reconstruct(compressed)
        return rebuilt.transpose(-1, -2) if rebuilt.dim() == 4 else rebuilt


@dataclass(frozen=True)
class OtherType(Half):
    def reconstruct(self, compressed):
        return super().reconstruct(compressed).double()


@dataclass(frozen=True)
class NoCompressed(Half):
    def compress(self, x, state=NO_STATE):
        return x.half()


@dataclass(frozen=True)
class Fails(Half):
    def compress(self, x, state=NO_STATE):
        raise RuntimeError("no\nway")


@dataclass(frozen=True)
class OtherGradient(Half):
    def weight_gradient(self, compressed, grad_output, weight, operation):
        return super().weight_gradient(compressed, grad_output, weight, operation)[:1]


@dataclass(frozen=True)
class LaterInPlace(Half):
    """Shows what it is on larger tensors alone."""

    def compress(self, x, state=NO_STATE):
        return super().compress(x.mul_(0.5) if x.numel() > 200 else x, state)


@dataclass(frozen=True)
class LaterShape(Half):
    def reconstruct(self, compressed):
        rebuilt = super().reconstruct(compressed)
        return nn.functional.pad(rebuilt, (0, 1)) if rebuilt.dim() == 4 and rebuilt.numel() > 200 else rebuilt


BROKEN: dict[type[Method], str] = {
    WrongInputGradient: "output",
    WrongWeightGradient: "weight_gradient",
    WrongForRows: "linear_layers",
    Flat: "shape",
    TooFewBytes: "bytes",
    Hidden: "bytes",
    FollowsTheData: "bytes",
    View: "bytes",
    Pins: "views",
    Loses: "gentlest",
    Larger: "smaller",
    Rises: "levels",
    GlobalNoise: "repeats",
    InPlace: "input",
    KeepsGraph: "input",
    Remembers: "declared",
    SaysThatItKeepsTheInput: "declared",
    ReadsState: "declared",
    WrongChannels: "channels",
    Hides: "nan",
    OneTypeAlone: "types",
    NoValue: "name",
    MoreLater: "steps",
    UndeclaredState: "bytes",
    RandomSteps: "seed",
    NeedsMore: "state",
    GrowingState: "batch_sizes",
}
"""The law that each breaks; some break others too."""
ALSO = {"later_nan": Hides, "tokens": WrongForRows, "series": WrongForRows}
"""Laws that another law's method breaks as well."""
