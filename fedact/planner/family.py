"""Which methods a plan may mix, and where a method that was asked for may give way to exact."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fedact.compression import Method
from fedact.compression.exact import Exact
from fedact.compression.quantize import Quantize
from fedact.compression.transform.transform import Transform

NO_POSITIONS = 2
"""Dimensions of an input of batch and channels alone, such as a head's."""


@dataclass(frozen=True)
class Family:
    """Methods that one plan may mix: all with the same ``recompute``, in whole maps or in streams.

    method: the one that was given without settings; None for all that ``auto`` mixes.
    """

    method: Method | None
    recompute: int
    in_streams: bool = False

    def ladder(self, x: Tensor, spectra: Any = None) -> list[Method]:
        """Return the methods for a saved input like x: the exact one, then the others, the gentlest first.

        spectra: what ``spectra`` returned for x, of this family or of another alternative of its method.
        """
        if self.method is not None:
            levels = [Exact(), *self.method.for_dimensions(x.dim()).levels(x, spectra).values()]
        else:
            # The exact method stands for the gentlest level.
            _, *coded = Transform().levels(x).values()
            levels = [Exact(), Quantize(bits=8), Quantize(bits=4), *coded]
        return [method.codec.recomputing(self.recompute) for method in levels]

    def spectra(self, x: Tensor) -> Any:
        """Return what of x the ladder and its reconstructions start from, the same for all alternatives of a method."""
        return None if self.method is None else self.method.for_dimensions(x.dim()).spectra(x)

    @property
    def per_example(self) -> bool:
        """Whether errors measured in one micro-batch hold in another."""
        return self.method is None or self.method.traits.per_example

    def admissible(self, methods: Sequence[Method], sizes: Sequence[int], dimensions: int, exact_size: float) -> list[int]:
        """Return the places of the methods that may save an input with so many dimensions.

        sizes: the bytes that each of them stores of it; exact_size: what is spared where it is not kept as it is. ``auto``
        may take any. A given method keeps every input that has positions itself where one of its levels spares bytes, and
        leaves it exact only where none does; other inputs may be exact as well.
        """
        if self.method is None:
            return list(range(len(methods)))
        exact = [place for place, method in enumerate(methods) if method.traits.keeps_input]
        smaller = [place for place, size in enumerate(sizes) if place not in exact and size < exact_size]
        return smaller if smaller and dimensions > NO_POSITIONS else exact + smaller
