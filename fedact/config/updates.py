"""What of the trained layers is trained: the one table of updates and their settings.

nn/adaptation.py carries them out.
"""

from dataclasses import dataclass
from functools import cache
from typing import Annotated, ClassVar

from pydantic import Field

from fedact.config.spec import build, in_full, settings

Rank = Annotated[int, Field(ge=1, le=4096)]
Alpha = Annotated[float, Field(gt=0, le=1e6)]


@dataclass(frozen=True)
class Update:
    """What of the last ``layers`` is trained; the head always is, and whole. source: the paper."""

    source: ClassVar[str]


@settings("layers")
class Layers(Update):
    """Whole layers: every weight of the last layers."""

    source: ClassVar[str] = "fine-tuning of the last layers"


@settings("bias")
class Bias(Update):
    """Biases alone: of the last layers, and the shifts of the norms after the first of them; none needs an input."""

    source: ClassVar[str] = "BitFit: Ben Zaken et al., ACL 2022, arXiv 2106.10199; TinyTL: Cai et al., NeurIPS 2020"


@settings("lora")
class LoRA(Update):
    """A product of two small matrices beside every weight: W + alpha / rank * B A, with W frozen.

    rank: rows of A and columns of B, 1 to 4,096, default 4. alpha: above 0, by default the rank, so that B A counts once.
    freeze_a: A stays as it was drawn, so that the input of a layer need not be kept, but A times it (FFA-LoRA).
    """

    source: ClassVar[str] = "LoRA: Hu et al., ICLR 2022, arXiv 2106.09685; FFA-LoRA: Sun et al., ICLR 2024, arXiv 2403.12313"

    rank: Rank = 4
    alpha: Alpha | None = None
    freeze_a: bool = False

    @property
    def scale(self) -> float:
        """What B A is multiplied by."""
        return 1.0 if self.alpha is None else self.alpha / self.rank


UPDATES: dict[str, type[Update]] = {"layers": Layers, "bias": Bias, "lora": LoRA}
"""The one table of updates."""
WHOLE = "layers"
"""The update that trains layers whole."""


@cache
def make_update(text: str) -> Update:
    """Return the update that ``NAME:key=value,...`` names.

    Raises ConfigError for an unknown name or setting, or a value that is not allowed.

    >>> make_update("lora:rank=8").scale, update_name("lora:rank=4,alpha=8")
    (1.0, 'lora:alpha=8')
    """
    return build("update", UPDATES, text)


def update_name(text: str) -> str:
    """Return an update's canonical name; raises ConfigError as ``make_update`` does."""
    return in_full(text, make_update)
