"""The papers' figure of activation memory: which saved tensors are the inputs of trained layers, and their elements."""

from typing import Any, NamedTuple

from torch import Tensor, nn

from fedact.measure.lifetimes import Lifetime
from fedact.torch_private import PRODUCTS, storage_address

PAPER_BYTES_PER_ELEMENT = 4
TOKENS = 3
"""Dimensions from which on a linear layer's input counts: the papers on transformers count those, and no classifier's."""


class Running(NamedTuple):
    """A module that is running: its name, itself, and the dimensions of what it was called with, 0 where that is unknown."""

    name: str
    module: nn.Module
    dimensions: int = 0

    @property
    def counts(self) -> bool:
        """Whether the papers' figure has its input: a trained convolution's, a linear layer's on tokens, attention's."""
        return trains_weight(self.module) and (isinstance(self.module, nn.Conv1d | nn.Conv2d) or self._is_on_tokens)

    @property
    def _is_on_tokens(self) -> bool:
        """Whether it is a linear layer or attention on tokens: a module that holds linear layers may multiply by itself."""
        if isinstance(self.module, nn.MultiheadAttention):
            return True
        kinds = self.module, *self.module.children()
        return self.dimensions >= TOKENS and any(isinstance(each, nn.Linear) for each in kinds)


class PaperInputs:
    """Notes the inputs that trained layers save.

    uses: from when to when, their bytes, and whose storage. possible: what was saved and may be the next product's input.
    """

    def __init__(self) -> None:
        self.uses: list[tuple[list[float], Lifetime]] = []
        self.possible: list[tuple[int, list[float], int]] = []
        self._noted: dict[tuple[Any, ...], list[float]] = {}

    def note(self, running: Running, tensor: Tensor, span: list[float], life: Lifetime) -> list[float]:
        """Note a tensor that a running module saves, and return its span, which ends when it is released.

        span: begin, end and bytes. Attention saves the same tensor for its projection and for itself: it counts once.
        """
        if not running.counts:
            return span
        # A module that saves its input by itself, and may pack several elements into a byte, says so.
        elements = getattr(running.module, "stored_elements", None)
        if elements is not None:
            place = id(running.module), id(life), tensor.storage_offset(), tensor.shape
            if isinstance(running.module, nn.MultiheadAttention) and place in self._noted:
                return self._noted[place]
            self._noted[place] = span
            span[2] = PAPER_BYTES_PER_ELEMENT * int(elements(tensor))
        else:
            # It may as well be the weight in autocast's type, or what the weight is computed from.
            stored = min(tensor.numel(), tensor.untyped_storage().nbytes() // tensor.element_size())
            self.possible.append((storage_address(tensor.untyped_storage()), span, stored))
        self.uses.append((span, life))
        return span

    def count(self, operation: Any, arguments: Any) -> None:
        """Note what a convolution or a product of matrices takes: autograd packed it just before."""
        place = storage_address(arguments[PRODUCTS[operation]].untyped_storage())
        found = [(span, elements) for packed, span, elements in self.possible if packed == place]
        for span, elements in found[-1:]:
            span[2] = PAPER_BYTES_PER_ELEMENT * elements
        self.possible.clear()


def trains_weight(module: nn.Module) -> bool:
    """Tell whether a layer's weight is trained; without reading ``module.weight``, which a parametrization computes anew."""
    weight = module._parameters.get("weight")
    if weight is not None:
        return weight.requires_grad
    return any(parameter.requires_grad for name, parameter in module.named_parameters() if name != "bias")
