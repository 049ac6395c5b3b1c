"""``vanilla`` and ``exact``: the tensor itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar

from torch import Tensor

from fedact.compression.method import Compressed, Method, item_size, shape_of


@dataclass(frozen=True)
class Exact(Method):
    """Keeps the tensor, while frozen batch norms keep nothing and ReLUs one bit an element: the same gradient."""

    source: ClassVar[str] = "autograd's gradient without what it need not keep"

    def compress(self, x: Tensor) -> Compressed:
        # A view would pin the whole storage it shows a part of.
        return Compressed((x if x.untyped_storage().nbytes() == x.nbytes else x.clone(),))

    def reconstruct(self, compressed: Compressed) -> Tensor:
        return compressed.tensors[0]

    def predicted_bytes(self, kept: Tensor | Sequence[int]) -> int:
        return prod(shape_of(kept)) * item_size(kept)


@dataclass(frozen=True)
class Vanilla(Exact):
    """Plain autograd: every layer keeps what PyTorch keeps."""

    source: ClassVar[str] = "PyTorch autograd"
    lean: ClassVar[bool] = False
