"""What of a layer is trained, where that is not the whole of it: noted on the layer by ``nn.adaptation``."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

PART = "_fedact_part"
"""The attribute of a layer that says what of it is trained."""
DOWN, UP = "lora_a", "lora_b"
"""The parameters of a low-rank update: A, of few outputs, and B, from these to the layer's own."""


@dataclass(frozen=True)
class Part:
    """What of a layer is trained.

    names: of its trained parameters, none for a layer that stays frozen. keeps_input: whether their gradient needs the
    layer's input. scale: of a low-rank update, None where there is none.
    """

    names: tuple[str, ...]
    keeps_input: bool = False
    scale: float | None = None


def part_of(module: nn.Module) -> Part | None:
    """Return what of a layer is trained; None for one that is trained, or frozen, as a whole."""
    return vars(module).get(PART)


def keeps_input(module: nn.Module) -> bool:
    """Tell whether a trained layer needs its input in the backward pass."""
    part = part_of(module)
    return part is None or part.keeps_input


def factors(module: nn.Module) -> tuple[Tensor, Tensor]:
    """Return the factors A and B of a layer's low-rank update."""
    return module._parameters[DOWN], module._parameters[UP]  # type: ignore[return-value]


def product(down: Tensor, up: Tensor, scale: float) -> Tensor:
    """Return what a low-rank update adds to a weight, in its shape: ``scale`` times B A."""
    return (up.flatten(1) @ down.flatten(1)).mul_(scale).view(len(up), *down.shape[1:])


@torch.no_grad()
def merge(module: nn.Module) -> None:
    """Undo what ``nn.adaptation`` did to a layer, with its low-rank update added to its weight."""
    part = vars(module).pop(PART)
    if part.scale is not None:
        module.weight.add_(product(*factors(module), part.scale))  # type: ignore[operator]
        del module._parameters[DOWN], module._parameters[UP]
