"""The ledger: every storage of a step from its creation to its release. It knows no method and no layer."""

import math
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field, is_dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fedact.measure.lifetimes import Lifetime
from fedact.measure.paper_inputs import PaperInputs, Running
from fedact.measure.timeline import Slot
from fedact.torch_private import (
    PRODUCTS,
    TorchDispatchMode,
    in_backward_pass,
    lift_fresh,
    ones_like,
    sparse_parts,
    storage_address,
    zeros_like,
)

_NO_TENSORS = {int, float, bool, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format}


@dataclass(eq=False)
class Pack:
    """What autograd stores in place of a saved tensor while the ledger runs; released with it.

    uses: of its storages, from when to when they are saved by it.
    """

    tensor: Tensor
    uses: list[tuple[Lifetime, list[float]]] = field(default_factory=list)


class Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows every operation; a storage is identified by its C++ address for as long as it is alive.

    ignored: tensors whose storages are not counted. clock: the number of operations so far. modules: those that are running.
    """

    def __init__(self, ignored: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.clock, self.last_operation = 0, None
        self.backward_times: list[float] = []
        self.lifetimes: list[Lifetime] = []
        self.alive: dict[int, Lifetime] = {}
        # Keeping the storages keeps their addresses from being given to others.
        self.ignored = {address(tensor): tensor.untyped_storage() for tensor in ignored}
        self.modules: list[Running] = []
        self.paper = PaperInputs()
        self.declared: dict[str, list[Lifetime]] = {}
        self.state_bytes = 0
        self.slots: list[Slot] = []
        self.work: list[tuple[float, list[float]]] = []
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
            if not (life.birth or life.exempt) and is_weight(tensor):
                life.exempt_from(self.clock)
            life.read = life.read or not backward
            life.entered = life.entered or (bool(self.modules) and not backward)
            life.last_use = self.clock if in_graph else life.last_use
        if self.paper.possible and func in PRODUCTS:
            self.paper.count(func, args)
        result = func(*args, **(kwargs or {}))
        self.last_operation = func
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
            if place in self.ignored:
                life.exempt = True
            else:
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
        pack = Pack(tensor.detach())
        for part in tensors_in(tensor):
            life = self.find(part)
            # What a module's code computes and hangs on a parameter shows itself here at the latest.
            if not life.exempt and (type(part) is nn.Parameter or (not life.birth and is_weight(part))):
                life.exempt_from(self.clock)
            # The last of several: an activation before a layer that keeps its output reads what is the layer's.
            if self.modules:
                life.owner = self.modules[-1][0]
            span, paper = [self.clock, math.inf], [self.clock, math.inf, 0.0]
            life.packed.append(span)
            pack.uses.append((life, span))
            if self.modules and not life.exempt:
                paper = self.paper.note(self.modules[-1], part, paper, life)
            self.watched.append(weakref.ref(pack, partial(self._release, span, paper)))
        return pack

    def unpack(self, pack: Pack) -> Tensor:
        """Return what autograd saved; what a method stored is decoded from now until it is released."""
        self.work += [(self.clock, span) for life, span in pack.uses if life.slot is not None]
        return pack.tensor

    def _release(self, span: list[float], paper: list[float], _: Any) -> None:
        span[1] = paper[1] = self.clock

    def declare_state(self, name: str, states: Iterable[Tensor]) -> None:
        """Note the tensors that a module keeps from step to step from now on, in place of those it declared before."""
        for life in self.declared.get(name, ()):
            life.state_until = self.clock
        self.declared[name] = [self.find(tensor) for tensor in states]
        for life in self.declared[name]:
            life.state_until = math.inf

    def begin_call(self) -> None:
        """Note that a method begins to compress."""
        self.work.append((self.clock, [self.clock, math.inf]))

    def end_call(self, tensors: Iterable[Tensor]) -> None:
        """Note the tensors that a compression returned."""
        self.work[-1][1][1] = self.clock
        self.give_slots(self.modules[-1][0] if self.modules else "", tensors)

    def give_slots(self, layer: str, tensors: Iterable[Tensor], old: bool = False) -> None:
        """Give every tensor that a method stores for a layer a slot, which is its storage's if that has none yet."""
        for place, tensor in enumerate(tensors):
            life = self.find(tensor)
            life.slot = len(self.slots) if life.slot is None else life.slot
            self.slots.append(Slot(layer, place, old))

    def note_gradient(self, parameter: Tensor) -> None:
        """Note that a storage has become the parameter's gradient, not counted from then on; zeros, not even when made."""
        for part in tensors_in(parameter.grad):
            life = self.find(part, born=True, before_backward=False)
            new = life.birth == self.clock and self.last_operation is zeros_like
            life.exempt_from(self.clock - 1) if new else self._exempt(life)

    def note_weights(self, tensors: Iterable[Tensor | None]) -> None:
        """Note what parameters, buffers and gradients are now; an assignment may have made new storages theirs."""
        for tensor in tensors:
            if tensor is None or is_lazy(tensor):
                continue
            if storage_address(tensor.untyped_storage()) not in self.ignored:
                self._exempt(self.find(tensor))

    def _exempt(self, life: Lifetime) -> None:
        if not life.exempt:
            # What the caller's code computed for it counts while that is done; what a pass made, until it is seen to be it.
            life.exempt_from(self.clock if life.inside or not life.before_backward else life.birth)

    def note_output(self, outputs: Any) -> None:
        """Note the model's outputs, which belong to the caller."""
        for tensor in tensors_in(outputs):
            self.find(tensor).inside = False


def is_weight(tensor: Tensor) -> bool:
    """Tell whether a tensor is a leaf that requires a gradient: what is trained, in whatever network."""
    return tensor.requires_grad and tensor.is_leaf


def address(tensor: Tensor) -> int:
    """Return the address of a tensor's storage, unique among those that are alive."""
    return storage_address(tensor.untyped_storage())


def tensors_in(value: Any) -> list[Tensor]:
    """Return the tensors in nested lists, tuples, dictionaries and dataclasses; of a sparse one its indices and values."""
    found: list[Tensor] = []
    _collect(value, found)
    return found


def _collect(value: Any, found: list[Tensor]) -> None:
    # Called for every operation: what is nothing but a number is told at once, and plain tensors nearly so.
    if isinstance(value, (list, tuple, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            if type(item) not in _NO_TENSORS:
                _collect(item, found)
    elif isinstance(value, Tensor):
        if value.layout is torch.strided:
            found.append(value)
        else:
            found.extend(sparse_parts(value))
    elif is_dataclass(value) and not isinstance(value, type):
        _collect(vars(value), found)
