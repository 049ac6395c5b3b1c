"""The ledger: every storage of a step from its creation to its release. It knows no method and no layer."""

import math
import weakref
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, field, is_dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fedact.torch_private import TorchDispatchMode, in_backward_pass, lift_fresh, ones_like, storage_address

PAPER_BYTES_PER_ELEMENT = 4
_NO_TENSORS = {int, float, bool, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format}

Span = tuple[float, float, int]
"""From when to when, both inclusive, and how many bytes."""


@dataclass(eq=False)
class Lifetime:
    """One storage: from when to when it is alive (in operations), who uses it, and when autograd has it packed.

    birth: 0 for what was there before the step. owner: the module that made it, or that saves it. before_backward: born in a
    forward pass or a recomputation. inside: born in a module that did not return it. root: the gradient that ``backward()``
    starts from, made by itself. entered: read by a module's forward pass; read: by any forward pass. last_use: the last time
    that a backward pass read it. packed: [start, end] of each time that autograd saved it. state_until: when it stopped
    being a module's declared state, which is counted apart; infinity for what still is, 0 for what never was.
    """

    size: int
    birth: float
    owner: str
    before_backward: bool
    inside: bool
    root: bool
    death: float = math.inf
    entered: bool = False
    read: bool = False
    last_use: float = -math.inf
    packed: list[list[float]] = field(default_factory=list)
    state_until: float = 0

    def held(self, backward_times: list[float], end: float) -> list[tuple[float, float]]:
        """Return when it is saved: while packed; where hooks did not see it, from the next backward operation on."""
        if self.packed:
            spans = [(max(start, self.state_until), min(stop, self.death)) for start, stop in union(self.packed)]
            return [(start, stop) for start, stop in spans if stop >= start]
        if self.state_until:
            return []
        if not self.before_backward or self.root:
            return []
        known = self.birth > 0 or self.read
        last = self.death if self.inside else self.last_use if known else -math.inf
        later = bisect_left(backward_times, self.birth)
        start = backward_times[later] if later < len(backward_times) else end
        return [(start, min(self.death, last))] if last >= start else []


@dataclass(eq=False)
class Pack:
    """What autograd stores in place of a saved tensor while the ledger runs; released with it."""

    tensor: Tensor


class Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows every operation; a storage is identified by its C++ address for as long as it is alive.

    ignored: tensors whose storages are not counted. clock: the number of operations so far. modules: those that are running.
    """

    def __init__(self, ignored: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.clock = 0
        self.backward_times: list[float] = []
        self.lifetimes: list[Lifetime] = []
        self.alive: dict[int, Lifetime] = {}
        # Keeping the storages keeps their addresses from being given to others.
        self.ignored = {address(tensor): tensor.untyped_storage() for tensor in ignored}
        self.modules: list[tuple[str, nn.Module]] = []
        self.paper: list[list[float]] = []
        self.declared: dict[str, list[Lifetime]] = {}
        self.watched: list[weakref.ref[Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.clock += 1
        in_graph = in_backward_pass()
        # A recomputed forward pass runs inside modules; also where, in a function's own forward, gradients are off.
        backward = in_graph and not torch.is_grad_enabled() and not self.modules
        if backward:
            self.backward_times.append(self.clock)
        # What is made from a number, a list or an array is first seen here, but was not there before.
        fresh = func is lift_fresh
        for tensor in tensors_in((args, kwargs)):
            life = self.find(tensor, born=fresh, before_backward=not (fresh and backward))
            life.read = life.read or not backward
            life.entered = life.entered or (bool(self.modules) and not backward)
            life.last_use = self.clock if in_graph else life.last_use
        result = func(*args, **(kwargs or {}))
        root = func is ones_like and not self.modules
        for tensor in tensors_in(result):
            self.find(tensor, born=True, before_backward=not backward, root=root)
        return result

    def find(self, tensor: Tensor, born: bool = False, before_backward: bool = True, root: bool = False) -> Lifetime:
        """Return the lifetime of a tensor's storage; one first seen as an operation's input was there before the step."""
        storage = tensor.untyped_storage()
        place = storage_address(storage)
        life = self.alive.get(place)
        if life is None:
            owner = self.modules[-1][0] if self.modules else ""
            inside = born and bool(self.modules)
            life = Lifetime(storage.nbytes(), self.clock if born else 0, owner, before_backward, inside, root)
            self.alive[place] = life
            if place not in self.ignored:
                self.lifetimes.append(life)
            self.watched.append(weakref.ref(storage, partial(self._die, place, life)))
        life.size = max(life.size, storage.nbytes())
        return life

    def _die(self, storage_address: int, life: Lifetime, _: Any) -> None:
        life.death = min(life.death, self.clock)
        if self.alive.get(storage_address) is life:
            del self.alive[storage_address]

    def pack(self, tensor: Tensor) -> Pack:
        """Return what autograd is to store in place of a tensor, which is saved for as long as the pack is alive."""
        # Detached: a saved output would otherwise hold the graph that holds it.
        life, pack = self.find(tensor), Pack(tensor.detach())
        # The last of several: an activation before a layer that keeps its output reads what is the layer's.
        if self.modules:
            life.owner = self.modules[-1][0]
        span, paper = [self.clock, math.inf], [self.clock, math.inf, self._paper_bytes(tensor)]
        life.packed.append(span)
        self.paper.append(paper)
        self.watched.append(weakref.ref(pack, partial(self._release, span, paper)))
        return pack

    def _release(self, span: list[float], paper: list[float], _: Any) -> None:
        span[1] = paper[1] = self.clock

    def _paper_bytes(self, tensor: Tensor) -> int:
        module = self.modules[-1][1] if self.modules else None
        if not (isinstance(module, nn.Conv2d) and module.weight.requires_grad) or address(tensor) in self.ignored:
            return 0
        # A module that packs several elements into a byte says so.
        elements = getattr(module, "stored_elements", Tensor.numel)
        return PAPER_BYTES_PER_ELEMENT * int(elements(tensor))

    def declare_state(self, name: str, states: Iterable[Tensor]) -> None:
        """Note the tensors that a module keeps from step to step from now on, in place of those it declared before."""
        for life in self.declared.get(name, ()):
            life.state_until = self.clock
        self.declared[name] = [self.find(tensor) for tensor in states]
        for life in self.declared[name]:
            life.state_until = math.inf

    def note_gradient(self, parameter: Tensor) -> None:
        """Note that a storage has become the parameter's gradient, which is not counted from then on."""
        if parameter.grad is not None:
            life = self.find(parameter.grad, born=True, before_backward=False)
            life.death = min(life.death, self.clock)

    def note_output(self, outputs: Any) -> None:
        """Note the model's outputs, which belong to the caller."""
        for tensor in tensors_in(outputs):
            self.find(tensor).inside = False


def peak(spans: Iterable[Span]) -> tuple[int, float]:
    """Return the largest total size of spans at any time, and the first such time; 0 and -1 without spans.

    >>> peak([(1, 4, 100), (3, 9, 50), (6, 9, 80)])
    (150, 3)
    """
    edges = sorted(edge for start, end, size in spans if end >= start for edge in ((start, 0, size), (end, 1, -size)))
    total, best, moment = 0, 0, -1.0
    for time, _, size in edges:
        total += size
        if total > best:
            best, moment = total, time
    return best, moment


def union(spans: list[list[float]]) -> list[tuple[float, float]]:
    """Return the union of the spans, in order: overlapping ones are one."""
    result: list[tuple[float, float]] = []
    for start, end in sorted(spans):
        if result and start <= result[-1][1]:
            result[-1] = (result[-1][0], max(end, result[-1][1]))
        else:
            result.append((start, end))
    return result


def address(tensor: Tensor) -> int:
    """Return the address of a tensor's storage, unique among those that are alive."""
    return storage_address(tensor.untyped_storage())


def tensors_in(value: Any) -> list[Tensor]:
    """Return the tensors in nested lists, tuples, dictionaries and dataclasses, but sparse ones, which have no storage."""
    found: list[Tensor] = []
    _collect(value, found)
    return found


def _collect(value: Any, found: list[Tensor]) -> None:
    # Called for every argument of every operation: what is nothing but a number is told at once.
    if type(value) in _NO_TENSORS:
        return
    if isinstance(value, Tensor):
        if value.layout is torch.strided:
            found.append(value)
    elif isinstance(value, (list, tuple, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            _collect(item, found)
    elif is_dataclass(value) and not isinstance(value, type):
        _collect(vars(value), found)
