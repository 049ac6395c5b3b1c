"""What a model's codecs store in a step, as they say it while they store it."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from fedact.compression.method import Compressed, Method
from fedact.nn.layers.codec import LayerCodec
from fedact.torch_private import storage_address

PAPER_BYTES_PER_ELEMENT = 4


class Observer(Protocol):
    """What follows a step's operations, and is told which of them compress."""

    def begin_call(self) -> None: ...
    def end_call(self, tensors: tuple[Tensor, ...]) -> None: ...


def codecs_of(model: nn.Module) -> dict[str, LayerCodec]:
    """Return a model's codecs by the names of their layers."""
    modules = model.named_modules()
    return {name: codec for name, module in modules if isinstance(codec := vars(module).get("codec"), LayerCodec)}


class StoredSizes(AbstractContextManager["StoredSizes"]):
    """The sizes of what a model's codecs store, and of their states, in one step after another; counts inside ``with``.

    Counted are all states, and what methods store whose stored bytes or working memory may follow the data; with ``every``
    what all methods store. sizes: bytes by tensor, first of the states before the step, then of each compression's tensors
    and state, in their order; a tensor in another's storage has none. paper: 4 bytes x stored elements. calls: by
    compression, the input's shape and the number of tensors. observer: is told when a compression begins and ends.
    codecs: the model's, for a caller that has them already: walking a network takes as long as a layer of it.

    >>> import fedact, torch
    >>> layers = torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 8, 3), torch.nn.Flatten()
    >>> model = fedact.compress(torch.nn.Sequential(*layers, torch.nn.Linear(128, 2)), "hosvd:variance=0.8", layers=1)
    >>> with StoredSizes(model) as stored:
    ...     _ = model(torch.rand(4, 3, 8, 8))
    >>> [shape for shape, _ in stored.calls], stored.state_bytes
    ([torch.Size([4, 8, 6, 6]), torch.Size([4, 128])], 0)
    >>> sum(stored.sizes) < 4 * (4 * 8 * 6 * 6 + 4 * 128)
    True
    """

    def __init__(self, model: nn.Module, every: bool = False, codecs: Mapping[str, LayerCodec] | None = None) -> None:
        self.codecs = codecs_of(model) if codecs is None else codecs
        self.every = every
        self.observer: Observer | None = None
        self.calls: list[tuple[torch.Size, int]] = []
        self.sizes: list[int] = []
        self.paper: list[int] = []
        self.state_bytes = 0

    def __enter__(self) -> Self:
        for codec in self.codecs.values():
            codec.stored = self
        self.begin_step()
        return self

    def __exit__(self, *_: Any) -> None:
        for codec in self.codecs.values():
            codec.stored = None

    def states(self) -> list[tuple[str, LayerCodec, list[Tensor]]]:
        """Return the name, the codec and the state of each layer that has one by now."""
        return [(name, codec, codec.state_tensors()) for name, codec in self.codecs.items() if codec.states]

    def begin_step(self) -> None:
        """Forget the last step's sizes but for the states that it left."""
        self.calls, self.sizes, self.paper = [], [], []
        for _, codec, tensors in self.states():
            self._add(codec, tuple(tensors))
        self.state_bytes = sum(self.sizes)

    def end_step(self) -> None:
        """Take the states that the step leaves into account, where they have more bytes than those before it."""
        after = sum(tensor.untyped_storage().nbytes() for _, _, tensors in self.states() for tensor in tensors)
        self.state_bytes = max(self.state_bytes, after)

    def counts(self, method: Method) -> bool:
        """Tell whether what a method stores is counted."""
        return self.every or not (method.fixed_size and method.traits.fixed_workspace)

    def begin_call(self) -> None:
        """Note that a compression begins."""
        if self.observer is not None:
            self.observer.begin_call()

    def end_call(self, codec: LayerCodec, x: Tensor, compressed: Compressed) -> None:
        """Note what a compression of x returned."""
        tensors = (*compressed.tensors, *compressed.state.tensors)
        self.calls.append((x.shape, len(tensors)))
        self._add(codec, tensors)
        if self.observer is not None:
            self.observer.end_call(tensors)

    def _add(self, codec: LayerCodec, tensors: tuple[Tensor, ...]) -> None:
        seen = set()
        for tensor in tensors:
            storage = tensor.untyped_storage()
            place = storage_address(storage)
            self.sizes.append(0 if place in seen else storage.nbytes())
            self.paper.append(PAPER_BYTES_PER_ELEMENT * codec.method.stored_elements(tensor))
            seen.add(place)
