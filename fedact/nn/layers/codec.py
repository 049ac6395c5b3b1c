"""A layer's method with the state it keeps from step to step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from fedact.compression.channels_last import ChannelsLast
from fedact.compression.exact import Exact
from fedact.compression.matrix_product import channels_second
from fedact.compression.method import Compressed, Method, State
from fedact.config.errors import ConfigError
from fedact.nn.layers.provenance import Handover, Origin, Provenance, SavedRun
from fedact.torch_private import version

if TYPE_CHECKING:
    from fedact.nn.layers.stored_sizes import StoredSizes


class Encoded(NamedTuple):
    """A compressed input and the method that reconstructs it; handover: of the activation before, which awaits a mask."""

    method: Any
    compressed: Compressed
    handover: Handover | None = None


class LayerCodec:
    """A layer's method, with one state for every shape (without the batch), type and device of its inputs.

    over_last: whether the inputs' channels are their last dimension; the method sees them second. dependents: number of
    other layers whose inputs (or masks) are rematerialized from what is saved here. provenance: of the tensors that are
    computed from it. stored: is told what is stored, where somebody counts it.
    """

    stored: StoredSizes | None = None

    def __init__(self, method: Method, seed: int, over_last: bool = False) -> None:
        self.method = method
        self.seed = seed
        self.over_last = over_last
        self.states: dict[tuple[torch.Size, torch.dtype, torch.device], State] = {}
        self.dependents = 0
        self.provenance = Provenance()

    def reset(self, seed: int) -> None:
        """Delete all states, and set the seed: for the next client."""
        self.seed = seed
        self.states.clear()

    def encode(self, x: Tensor, given: Tensor) -> Encoded:
        """Return the method used and the compressed x, and update the state for inputs like x.

        given: the tensor that the layer was called with, of which x may be a cast copy.
        """
        method = self.method.for_dimensions(x.dim()) if x.numel() else Exact()
        seen = channels_second(x) if self.over_last else x
        coder = ChannelsLast(method) if seen is not x and not method.traits.keeps_input else method
        # An example's size, not the batch's: the last batch of an epoch is smaller.
        size, stored = (seen.shape[1:], x.dtype, x.device), self.stored
        if stored is not None and not stored.counts(method):
            stored = None
        if stored is not None:
            stored.begin_call()
        before = version(x)
        compressed = coder.compress(x, self.states.get(size) or method.start(self.seed))
        if version(x) != before:
            raise ConfigError(f"{type(method).__name__} changes its input in place, which the layer computes with")
        if stored is not None:
            stored.end_call(self, seen, compressed)
        if compressed.state.tensors:
            self.states[size] = compressed.state
        if self.dependents:
            self.provenance.note(given, Origin(SavedRun(coder, compressed, given, self.dependents)))
        return Encoded(coder, compressed)

    def stored_elements(self, tensor: Tensor) -> int:
        """Return the number of elements that a saved tensor stores, for the papers' memory figure."""
        return self.method.stored_elements(tensor)

    def load(self, size: tuple[int, ...], tensors: tuple[Tensor, ...]) -> None:
        """Set the state for inputs of this size (without the batch) in the tensors' type and device."""
        self.states[torch.Size(size), tensors[0].dtype, tensors[0].device] = State(tensors)

    def state_tensors(self) -> list[Tensor]:
        """Return the tensors that are kept between steps."""
        return [tensor for state in self.states.values() for tensor in state.tensors]
