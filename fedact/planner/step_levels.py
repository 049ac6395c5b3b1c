"""The bytes alive in a step whose codecs are stand-ins, and with any methods in the stand-ins' places."""

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from functools import cached_property
from math import prod
from typing import NamedTuple

from torch import nn

from fedact.compression import Method
from fedact.compression.channels_last import has_own_gradient
from fedact.compression.exact import Exact
from fedact.compression.lowrank.decomposition import LowRank
from fedact.measure.ledger import Ledger
from fedact.measure.lifetimes import Lifetime
from fedact.measure.stored import counted
from fedact.measure.timeline import Levels, Use
from fedact.nn.graph import consumers
from fedact.nn.install import activations_without_mask
from fedact.nn.layers.base import EXAMPLE_NORMS
from fedact.planner.stand_in import Calls, Geometry, GradientCall
from fedact.planner.working_memory import WorkingMemory, has_own_input_gradient


class Part(Enum):
    """What of a step a method decides on.

    STORED: what it stores. STATE: what it keeps from step to step. KEPT: the input itself, after the forward pass has no
    more use for it. MASK: saved beside what is stored, by the activation before or by a norm of each example's. ENCODING,
    DECODING: working memory. REBUILT: the reconstruction. CORRELATING: what a weight gradient from the reconstruction works
    with; GRADIENT: what a method's own does. INPUT_GRADIENT: what a method's own input gradient works with.
    """

    STORED = auto()
    STATE = auto()
    KEPT = auto()
    MASK = auto()
    ENCODING = auto()
    DECODING = auto()
    REBUILT = auto()
    CORRELATING = auto()
    GRADIENT = auto()
    INPUT_GRADIENT = auto()
    RESULT = auto()


WORKING = (Part.ENCODING, Part.DECODING, Part.GRADIENT)
"""What a method works with, and does not keep."""
COPIES, LOW_RANK_COPIES, SQUARES = 20, 6, 4
"""A method is taken to work with no more than so many tensors like its input, its output gradient and its weight, and so
many squares, in float64, of a dimension of the input; measured are 14 (``transform``) and 4.3 (``hosvd``)."""
SMALL = 16_384
"""Bytes that a method works with on tensors so small that the number of its own tensors counts, not their sizes."""


class Slot(NamedTuple):
    """A number of bytes that a method decides on: of a layer's input of this shape; size: without any method.

    inside: of a weight gradient that the codec takes; call: which. others: layers that may keep the same input. channels:
    those that are decoded, None for all.
    """

    part: Part
    layer: str
    like: Geometry
    size: int
    inside: bool = False
    call: GradientCall | None = None
    others: tuple[str, ...] = ()
    channels: range | None = None

    def working_bound(self, method: Method) -> int:
        """Return about the most bytes that a method may work with."""
        shapes = [self.like.shape] + ([self.call.grad_output.shape, self.call.weight.shape] if self.call else [])
        elements = prod(self.like.shape)
        sides = [min(side, elements // max(1, side)) for side in self.like.shape]
        copies = LOW_RANK_COPIES if isinstance(method, LowRank) else COPIES
        return copies * 4 * sum(map(prod, shapes)) + SQUARES * 8 * max(sides, default=0) ** 2 + SMALL


@dataclass(frozen=True, eq=False)
class StepLevels:
    """The bytes alive in a step, at every moment, but for those that methods decide on.

    itemsize: bytes of an element of the inputs.
    """

    levels: Levels
    slots: tuple[Slot, ...]
    itemsize: int

    def peak_bytes(self, methods: Mapping[str, Method], working: WorkingMemory) -> int:
        """Return the most bytes alive at any moment with these methods, by layer.

        What a method works with is found where it may make a difference, and taken to be nothing elsewhere.
        """
        sizes = [0 if slot.part in WORKING else self._size(slot, methods, working) for slot in self.slots]
        totals = self.levels.at(sizes)
        best, reach = int(totals.max(initial=0)), self.levels.during(totals)
        bounds = {
            place: reach[place] + slot.working_bound(methods[slot.layer])
            for place, slot in enumerate(self.slots)
            if slot.part in WORKING
        }
        for place in sorted(bounds, key=bounds.__getitem__, reverse=True):
            if working.none or bounds[place] <= best:
                break
            sizes[place] = self._size(self.slots[place], methods, working)
            best = max(best, reach[place] + sizes[place])
        return self.levels.most(sizes)

    def least_bytes_of(self, examples: int, two: "StepLevels") -> int | None:
        """Return ``least_bytes`` of a step on more examples, where this one is on one; None where it is of another kind.

        two: the step on two. Every storage grows by the same number with every example; where a kernel works on a part at a
        time, it is less.
        """
        grown = self.levels.grown(two.levels, examples - 1)
        return None if grown is None else grown.most([0] * len(self.slots))

    @cached_property
    def least_bytes(self) -> int:
        """The most bytes alive at any moment where methods store nothing and work with nothing."""
        return self.levels.most([0] * len(self.slots))

    def state_bytes(self, methods: Mapping[str, Method], working: WorkingMemory) -> int:
        """Return the bytes that methods keep from step to step."""
        states = [slot for slot in self.slots if slot.part is Part.STATE]
        # Each is there twice, as a step's first and as its last one.
        return sum(self._size(slot, methods, working) for slot in states) // 2

    def _size(self, slot: Slot, methods: Mapping[str, Method], working: WorkingMemory) -> int:
        method = methods[slot.layer]
        part, keeps = slot.part, method.traits.keeps_input
        own = slot.inside and has_own_gradient(method)
        if part is Part.KEPT:
            return slot.size if keeps or any(methods[name].traits.keeps_input for name in slot.others) else 0
        if part is Part.MASK:
            return 0 if keeps else slot.size
        if part is Part.RESULT:
            return slot.size if own else 0
        if part in (Part.REBUILT, Part.CORRELATING):
            return 0 if own or (keeps and part is Part.REBUILT) else slot.size
        if keeps:
            return 0
        if part is Part.GRADIENT:
            call = slot.call
            assert call is not None
            return working.gradient_bytes(method, slot.like, call) if own else 0
        if part is Part.INPUT_GRADIENT:
            assert slot.call is not None
            return working.input_gradient_bytes(method, slot.like, slot.call) if has_own_input_gradient(method) else 0
        if part is Part.STORED:
            return working.stored_bytes(method, slot.like.shape)
        if part is Part.STATE:
            return working.state_bytes(method, slot.like.shape)
        if slot.channels is not None:
            return working.channels_bytes(method, slot.like, slot.channels)
        used = working.bytes(method, slot.like, self.itemsize)
        if part is Part.ENCODING:
            # What is stored, and the new state, are alive by then, and counted.
            made = working.stored_bytes(method, slot.like.shape) + working.state_bytes(method, slot.like.shape)
            return max(0, used.encoding - made)
        return 0 if own else used.decoding


def step_levels(ledger: Ledger, calls: Calls, masked_by: Mapping[str, str], itemsize: int) -> StepLevels:
    """Return the levels of the step that a ledger followed; masked_by: see ``mask_readers``."""
    slots: list[Slot] = []
    uses: list[Use] = []

    def add(slot: Slot, start: float, stop: float) -> None:
        uses.append(Use(start, stop, 0, len(slots)))
        slots.append(slot)

    inputs = {each.layer: each.like for each in calls.encodings}
    taken: dict[int, Slot] = {}
    for each in calls.encodings:
        layer, like, stored, source = each.layer, each.like, each.stored, each.source
        taken[id(stored)] = Slot(Part.STORED, layer, like, 0)
        # The last step's state is there until the step is done.
        add(Slot(Part.STATE, layer, like, 0), 0, ledger.clock)
        add(Slot(Part.STATE, layer, like, 0), each.moment, ledger.clock)
        add(Slot(Part.ENCODING, layer, like, 0), each.moment, each.moment)
        if not source.exempt:
            # What several layers keep counts once, until the last of them is done.
            same = [other for other in calls.encodings if other.source is source and other.stored.death > stored.death]
            sooner = [other.stored.death for other in calls.encodings if other.source is source and other not in same]
            start = max([source.death, *(death for death in sooner if death < stored.death)]) + 1
            kept = Slot(Part.KEPT, layer, like, source.size, others=tuple(other.layer for other in same))
            add(kept, start, stored.death)
    for call in calls.gradients:
        if (result := call.result) is not None:
            taken[id(result)] = Slot(Part.RESULT, call.layer, inputs[call.layer], result.size, inside=True)
        add(Slot(Part.GRADIENT, call.layer, inputs[call.layer], 0, inside=True, call=call), call.start + 1, call.stop)
    for call in calls.input_gradients:
        add(Slot(Part.INPUT_GRADIENT, call.layer, inputs[call.layer], 0, call=call), call.start + 1, call.stop)
    for decoding in calls.decodings:
        layer, start, stop, result, channels = decoding
        inside = _around(calls.gradients, start, stop) is not None
        add(Slot(Part.DECODING, layer, inputs[layer], 0, inside, channels=channels), start + 1, stop)
        taken[id(result)] = Slot(Part.REBUILT, layer, inputs[layer], result.size, inside)
    for life in counted(ledger.lifetimes):
        slot = taken.get(id(life)) or _correlating(life, calls.gradients, inputs) or _mask(life, masked_by, inputs)
        if slot is None:
            uses.append(Use(life.birth, life.death, life.size))
        else:
            add(slot, life.birth, life.death)
    return StepLevels(Levels(uses), tuple(slots), itemsize)


def _around(calls: Sequence[GradientCall], start: float, stop: float) -> GradientCall | None:
    """Return the call, of those in the order of time, that begins before and ends after."""
    place = bisect_right(calls, start, key=lambda call: call.start) - 1
    return calls[place] if place >= 0 and stop <= calls[place].stop else None


def _correlating(life: Lifetime, calls: Sequence[GradientCall], inputs: Mapping[str, Geometry]) -> Slot | None:
    """Return the slot of what lives within a weight gradient."""
    call = None if life.exempt or not life.birth else _around(calls, life.birth - 1, life.death)
    return Slot(Part.CORRELATING, call.layer, inputs[call.layer], life.size, inside=True) if call else None


def _mask(life: Lifetime, masked_by: Mapping[str, str], inputs: Mapping[str, Geometry]) -> Slot | None:
    """Return the slot of a mask that is not needed where a layer keeps its input."""
    layer = masked_by.get(life.owner, "") if life.packed else ""
    return Slot(Part.MASK, layer, inputs[layer], life.size) if layer in inputs else None


def mask_readers(model: nn.Module, layers: Iterable[str]) -> dict[str, str]:
    """Return what saves no mask where a layer keeps its input, with one such layer, in a plain model.

    That is an activation, and a norm of each example's itself, whose inverse deviations are its mask.
    """
    names = list(layers)
    norms = [name for name in names if isinstance(model.get_submodule(name), EXAMPLE_NORMS)]
    maskless, readers = activations_without_mask(model, dict.fromkeys(names, Exact())), consumers(model)
    return dict(zip(norms, norms, strict=True)) | {
        relu: next(name for name in names if all(name in call for call in readers[relu]))
        for relu in maskless
        if any(all(name in call for call in readers[relu]) for name in names)
    }
