"""Where a tensor comes from in this step: the proof that it can be rematerialized.

A graph of the model's code says what a step usually does. Hooks, operations in place, and code that depends on attributes
make a step differ; so each module of a chain notes what it really computed from what.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor, nn

from fedact.torch_private import saved_tensor_hooks, version

if TYPE_CHECKING:
    from fedact.compression.channels_last import Coder
    from fedact.compression.method import Compressed
    from fedact.nn.layers.base import Slope

Mark = tuple[int, int]


def mark(tensor: Tensor) -> Mark:
    """Return what changes when a tensor is changed in place, or gets other memory."""
    return version(tensor), tensor.data_ptr()


def weight_marks(module: nn.Module) -> list[Mark]:
    """Return the marks of a module's own parameters and buffers."""
    tensors = (*vars(module)["_parameters"].values(), *vars(module)["_buffers"].values())
    return [mark(tensor) for tensor in tensors if tensor is not None]


def computes_alike(module: nn.Module) -> bool:
    """Tell whether a module's weights are its own: a parametrization or a hook may compute others at every reading."""
    return not vars(module)["_modules"] and "weight" not in vars(module)


class Link(NamedTuple):
    """A module that computed a tensor, with the marks of the weights that it computed it with."""

    module: nn.Module
    weights: list[Mark]


Chain = tuple[Link, ...]


def chain_of(modules: Iterable[nn.Module]) -> Chain:
    """Return the chain of these modules with their weights as they are."""
    return tuple(Link(module, weight_marks(module)) for module in modules)


class Handover:
    """A masked gradient on its way from a layer to the activation before it, which would compute the same again.

    The layer returns its input's gradient without the mask, for whoever else asks for it.
    """

    def __init__(self, slope: Slope) -> None:
        self.slope = slope
        self._pair: tuple[Tensor, int, Tensor] | None = None

    def give(self, gradient: Tensor, masked: Tensor) -> None:
        """Note the masked form of a gradient that the layer returns."""
        self._pair = gradient, version(gradient), masked

    def take(self, gradient: Tensor) -> Tensor | None:
        """Return the masked form of this very gradient, None where another one arrives or it was changed."""
        pair, self._pair = self._pair, None
        return pair[2] if pair is not None and pair[0] is gradient and version(gradient) == pair[1] else None


class SavedRun:
    """What a layer saved of its input x in one forward pass, for ``readers`` others that rematerialize theirs from it."""

    def __init__(self, method: Coder, compressed: Compressed, x: Tensor, readers: int) -> None:
        self.readers = readers
        self._hooks, self._marks = saved_tensor_hooks(), [mark(tensor) for tensor in compressed.tensors]
        # Not x itself: x's origin holds this, and x would never be freed where a reader does not come.
        self._is_x = [tensor is x for tensor in compressed.tensors]
        tensors = tuple(tensor.detach() if tensor is x else tensor for tensor in compressed.tensors)
        self._saved: tuple[Coder, Compressed] | None = (method, compressed._replace(tensors=tensors))

    def take(self, x: Tensor | None = None) -> tuple[Coder, Compressed] | None:
        """Return the method and what is saved, None where it was changed since; the last reader's call releases it.

        None also across the border of a part that PyTorch's checkpoint runs again, which saves by hooks of its own.
        x: the layer's input where the reader has the same one, which then saves the tensor itself if the layer did.
        """
        saved, self.readers = self._saved, self.readers - 1
        if self.readers <= 0:
            self._saved = None
        if saved is None or saved_tensor_hooks() != self._hooks:
            return None
        method, compressed = saved
        if [mark(tensor) for tensor in compressed.tensors] != self._marks:
            return None
        if x is None:
            return saved
        tensors = tuple(x if is_x else tensor for tensor, is_x in zip(compressed.tensors, self._is_x, strict=True))
        return method, compressed._replace(tensors=tensors)


class Origin(NamedTuple):
    """How a tensor was computed: by ``chain`` from what ``run`` saved. handover: of the activation that computed it."""

    run: SavedRun
    chain: Chain = ()
    handover: Handover | None = None

    def after(self, module: nn.Module) -> Chain:
        """Return the chain of what a module computes from the tensor."""
        return self.chain + chain_of((module,))


class Provenance:
    """The origins of this step's tensors that were computed from one layer's saved input, while they are alive."""

    def __init__(self) -> None:
        self._origins: dict[int, tuple[weakref.ref[Tensor], Mark, Origin]] = {}

    def note(self, x: Tensor, origin: Origin) -> None:
        """Note where x, as it is now, comes from."""
        key, origins = id(x), self._origins
        origins[key] = weakref.ref(x, lambda _: origins.pop(key, None)), mark(x), origin

    def origin(self, x: Tensor) -> Origin | None:
        """Return where x comes from, None where that is unknown or x was changed since."""
        reference, then, origin = self._origins.get(id(x), (None, None, None))
        return origin if reference is not None and reference() is x and mark(x) == then else None

    def extend(self, origin: Origin | None, module: nn.Module, y: Tensor, handover: Handover | None = None) -> None:
        """Note that a module computed y from a tensor of this origin."""
        if origin is not None and computes_alike(module):
            self.note(y, Origin(origin.run, origin.after(module), handover))

    def __len__(self) -> int:
        return len(self._origins)

    def __deepcopy__(self, _: Any) -> Provenance:
        return Provenance()

    def __reduce__(self) -> tuple[Any, ...]:
        return Provenance, ()
