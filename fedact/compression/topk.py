"""``topk``: the largest elements of every example, and where they were."""

from collections.abc import Sequence
from dataclasses import replace
from math import ceil, prod
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fedact.compression.method import NO_STATE, Compressed, Method, State, Sweep, Traits, item_size, part_way, shape_of
from fedact.compression.packing import pack_codes, packed_bytes, unpack_codes
from fedact.config.spec import settings

PAPER_SHARE = 0.1
"""DropIT drops 90 % of an intermediate tensor's elements."""
LEVELS = (0.9, 0.7, 0.5, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01)
"""Shares between which a budget chooses."""

Share = Annotated[float, Field(gt=0, le=1)]


@settings("topk")
class TopK(Method):
    """The largest share of every example's elements by magnitude; the others are zero in the weight gradient.

    Stores the elements, 4 bytes each in float32, and where they were: a number of 4 bytes for each of them, or one bit for
    every element of the tensor, whichever is less. The reconstruction is nearer to x than any other with so many elements,
    and biased: its length is always less.
    DropIT: Chen et al., ICLR 2023, arXiv 2202.13808, section 3 (min-k dropping).

    share: above 0, at most 1, of an example's elements, rounded up; a plan's budget chooses it, and where there is none it
    is the paper's 0.1.

    >>> from fedact.compression import METHODS
    >>> METHODS["topk"](share=0.1).predicted_bytes((16, 96, 14, 14))
    158080
    """

    traits: ClassVar[Traits] = Traits(
        "DropIT: Chen et al., ICLR 2023, arXiv 2202.13808, section 3",
        published="share=0.1",
        sweep=Sweep("share", (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)),
        per_example=True,
        tensor_seconds=5e-4,
        element_seconds=1.5e-8,
        gentlest="share=1",
    )

    share: Share | None = None

    def compress(self, x: Tensor, state: State = NO_STATE) -> Compressed:
        flat, layout = x.reshape(len(x), -1), (x.shape, x.dtype)
        count = self._count(x.shape)
        if count == flat.shape[1]:
            return Compressed((flat.clone(memory_format=torch.contiguous_format).flatten(),), layout)
        places = flat.abs().topk(count, 1, sorted=False).indices
        if _by_place(flat.shape[1], count):
            return Compressed((flat.gather(1, places).flatten(), places.int().flatten()), layout)
        mask = torch.zeros_like(flat, dtype=torch.bool, memory_format=torch.contiguous_format).scatter_(1, places, True)
        del places
        return Compressed((flat.masked_select(mask), pack_codes(mask.view(torch.uint8), 1)), layout)

    def reconstruct(self, compressed: Compressed) -> Tensor:
        values, *places = compressed.tensors
        shape, dtype = compressed.metadata
        if not places:
            return values.view(shape)
        flat = torch.zeros(len(values) and shape.numel(), dtype=dtype, device=values.device).view(shape[0], -1)
        if places[0].dtype is torch.int32:
            return flat.scatter_(1, places[0].view(shape[0], -1).long(), values.view(shape[0], -1)).view(shape)
        mask = unpack_codes(places[0], 1, shape.numel()).view(torch.bool)
        return flat.view(-1).masked_scatter_(mask, values).view(shape)

    def predicted_bytes(self, x: Tensor | Sequence[int]) -> int:
        shape = shape_of(x)
        examples, size, count = shape[0], prod(shape[1:]), self._count(shape)
        values = examples * count * item_size(x)
        if count == size:
            return values
        by_place = _by_place(size, count)
        return values + (4 * examples * count if by_place else packed_bytes(examples * size, 1))

    def stored_elements(self, tensor: Tensor) -> int:
        # A mask is as many elements as float32 numbers take its room.
        return ceil(tensor.numel() / 4) if tensor.dtype is torch.uint8 else tensor.numel()

    def levels(self, x: Tensor, spectra: Any = None) -> dict[float, Method]:
        """Return the method with a share fixed."""
        return {1.0: self} if self.share is not None else {share: replace(self, share=share) for share in LEVELS}

    @property
    def has_free_settings(self) -> bool:
        return self.share is None

    def between(self, other: Method, share: float) -> Method | None:
        if not (isinstance(other, TopK) and self.share and other.share):
            return None
        return replace(self, share=part_way(self.share, other.share, share))

    def _count(self, shape: Sequence[int]) -> int:
        """Return how many elements of an example are kept."""
        return ceil((self.share or PAPER_SHARE) * prod(shape[1:]))


def _by_place(size: int, count: int) -> bool:
    """Tell whether numbers say where the elements of an example were, in fewer bytes than a bit for each element."""
    return 32 * count < size
