"""One ledger of live storages: what a training step really holds (it knows no method and no layer).

A TorchDispatchMode sees every storage that a step creates and, through weak references, when it dies. A storage counts as
*held* when autograd packed it (saved_tensors_hooks name the owner), when the backward pass reads again what the forward pass
read, or when it was made inside a module and outlives the forward pass there without being its output. The last two see what
hooks cannot: nested hooks, checkpointing, tensors hung on an attribute or in a closure.
"""

import math
import weakref
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

PAPER_BYTES_PER_ELEMENT = 4


@dataclass
class Memory:
    """Bytes of one measured stretch of training; all zero until the ``with`` block ends.

    saved_bytes: the maximum of held bytes (headline "activation memory"), state_bytes of it the methods' own state.
    peak_bytes: the most bytes alive above parameters, buffers, gradients, optimizer state and the raw inputs.
    paper_bytes: 4 bytes x stored elements of the trained convolutions' inputs, the papers' figure.
    hidden_bytes: the part of saved_bytes that saved_tensors_hooks did not see.
    by_layer: saved_bytes by module name (``""`` is outside of every module, the loss).
    """

    saved_bytes: int = 0
    state_bytes: int = 0
    peak_bytes: int = 0
    paper_bytes: int = 0
    hidden_bytes: int = 0
    by_layer: dict[str, int] = field(default_factory=dict)


@dataclass(eq=False)
class _Life:
    """One storage: when it was born and died, and why it counts as held."""

    size: int
    birth: float
    owner: str
    before_backward: bool
    inside: bool
    death: float = math.inf
    packed: float = math.inf
    released: float = -math.inf
    read: bool = False
    last_use: float = -math.inf

    def held(self) -> tuple[float, float]:
        """Return from when to when it is held. A root gradient, which no forward operation read, never is."""
        ends = [self.released, self.last_use if self.before_backward and self.read else -math.inf]
        if self.inside and self.before_backward:
            ends.append(self.death)
        return min(self.birth, self.packed), min(self.death, max(ends))


@dataclass(eq=False)
class _Pack:
    """What autograd keeps in place of a saved tensor while the ledger runs."""

    tensor: Tensor


Span = tuple[float, float, int]


class _Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows storages by their C++ address for as long as they live."""

    def __init__(self, ignored: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.clock = 0
        self.backward_times: list[float] = []
        self.lives: list[_Life] = []
        self.alive: dict[int, _Life] = {}
        self.ignored = {_address(tensor): tensor.untyped_storage() for tensor in ignored}
        self.modules: list[tuple[str, nn.Module]] = []
        self.paper: list[list[float]] = []
        self.watched: list[weakref.ref[Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.clock += 1
        backward = _in_backward()
        if backward:
            self.backward_times.append(self.clock)
        for tensor in _tensors((args, kwargs)):
            life = self._find(tensor)
            life.read = life.read or not backward
            life.last_use = self.clock if _in_graph_task() else life.last_use
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            self._find(tensor, born=True, before_backward=not backward)
        return result

    def _find(self, tensor: Tensor, born: bool = False, before_backward: bool = True) -> _Life:
        """Return the life of a tensor's storage; one first seen as an input was there before the step."""
        storage = tensor.untyped_storage()
        address = storage._cdata
        life = self.alive.get(address)
        if life is None:
            owner = self.modules[-1][0] if self.modules else ""
            life = _Life(storage.nbytes(), self.clock if born else 0, owner, before_backward, born and bool(self.modules))
            self.alive[address] = life
            if address not in self.ignored:
                self.lives.append(life)
            self.watched.append(weakref.ref(storage, partial(self._die, address, life)))
        life.size = max(life.size, storage.nbytes())
        return life

    def _die(self, address: int, life: _Life, _: Any) -> None:
        life.death = min(life.death, self.clock)
        if self.alive.get(address) is life:
            del self.alive[address]

    def pack(self, tensor: Tensor) -> _Pack:
        life, pack = self._find(tensor), _Pack(tensor)
        if life.packed == math.inf and self.modules:
            life.owner = self.modules[-1][0]
        life.packed, life.released = min(life.packed, self.clock), math.inf
        paper = [self.clock, math.inf, self._paper_bytes(tensor)]
        self.paper.append(paper)
        self.watched.append(weakref.ref(pack, partial(self._release, life, paper)))
        return pack

    def _release(self, life: _Life, paper: list[float], _: Any) -> None:
        life.released = paper[1] = self.clock

    def _paper_bytes(self, tensor: Tensor) -> int:
        module = self.modules[-1][1] if self.modules else None
        trained = isinstance(module, nn.Conv2d) and module.weight.requires_grad
        return PAPER_BYTES_PER_ELEMENT * tensor.numel() if trained and _address(tensor) not in self.ignored else 0

    def became_gradient(self, parameter: Tensor) -> None:
        """From now on the storage is the parameter's gradient, which the device has anyway."""
        if parameter.grad is not None:
            life = self._find(parameter.grad, born=True, before_backward=False)
            life.death = min(life.death, self.clock)

    def returned(self, outputs: Any) -> None:
        """What the outermost module returns belongs to the caller."""
        for tensor in _tensors(outputs):
            self._find(tensor).inside = False


@contextmanager
def measure_memory(model: nn.Module, inputs: Any = (), optimizer: torch.optim.Optimizer | None = None) -> Iterator[Memory]:
    """Measure what the steps inside the ``with`` block hold.

    inputs: the raw images and labels, which are not counted. optimizer: its state is not counted either.
    Yields a Memory that is filled when the block ends; the definitions are its docstring.
    """
    memory, state = Memory(), _state_tensors(model)
    device = [*model.parameters(), *model.buffers(), *_tensors(inputs), *state]
    ledger = _Ledger([*device, *(p.grad for p in model.parameters() if p.grad is not None), *_optimizer_state(optimizer)])
    with ExitStack() as stack:
        for handle in _watch(model, ledger):
            stack.callback(handle.remove)
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(ledger.pack, lambda pack: pack.tensor))
        stack.enter_context(ledger)
        yield memory
    made = {_address(tensor) for tensor in _optimizer_state(optimizer)}
    _settle(memory, ledger, sum(_sizes(state)), [ledger.alive[a] for a in made if a in ledger.alive])


def _settle(memory: Memory, ledger: _Ledger, state_bytes: int, not_counted: list[_Life]) -> None:
    """Read the figures off the finished ledger."""
    lives = [life for life in ledger.lives if life not in not_counted]
    times = [*ledger.backward_times, ledger.clock + 1.0]
    held = [(life, *life.held()) for life in lives]
    held_bytes, moment = _highest([(start, end, life.size) for life, start, end in held], times)
    memory.state_bytes, memory.saved_bytes = state_bytes, held_bytes + state_bytes
    everything: list[Span] = [(life.birth, life.death, life.size) for life in lives if life.birth or life.held()[1] >= 0]
    memory.peak_bytes = max(_highest(everything, range(ledger.clock + 2))[0], held_bytes) + state_bytes
    memory.paper_bytes = _highest([(a, b, int(size)) for a, b, size in ledger.paper], times)[0]
    for life, start, end in held:
        if start <= moment <= end:
            memory.by_layer[life.owner] = memory.by_layer.get(life.owner, 0) + life.size
            memory.hidden_bytes += life.size if life.packed == math.inf else 0


def _highest(spans: list[Span], times: Iterable[float]) -> tuple[int, float]:
    """Return the largest total size of the (closed) spans at any of the times, and that time."""
    edges = sorted([(start, 0, size) for start, end, size in spans if end >= start]
                   + [(end, 2, -size) for start, end, size in spans if end >= start]
                   + [(time, 1, 0) for time in times])  # fmt: skip
    total, best, moment = 0, 0, -1.0
    for time, kind, size in edges:
        total += size
        if kind == 1 and total > best:
            best, moment = total, time
    return best, moment


def _watch(model: nn.Module, ledger: _Ledger) -> Iterator[torch.utils.hooks.RemovableHandle]:
    """Tell the ledger which module runs, what the outermost one returns, and what becomes a gradient."""
    for name, module in model.named_modules():

        def enter(module: nn.Module, args: Any, name: str = name) -> None:
            ledger.modules.append((name, module))

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            if ledger.modules:
                ledger.modules.pop()
            if not ledger.modules:
                ledger.returned(output)

        yield module.register_forward_pre_hook(enter, prepend=True)
        yield module.register_forward_hook(leave, always_call=True)
    for parameter in model.parameters():
        if parameter.requires_grad:
            yield parameter.register_post_accumulate_grad_hook(ledger.became_gradient)  # type: ignore[no-untyped-call]


def _in_backward() -> bool:
    """Tell a backward operation from a forward one, recomputation (which records gradients) included."""
    return _in_graph_task() and not torch.is_grad_enabled()


def _in_graph_task() -> bool:
    return torch._C._current_graph_task_id() != -1


def _address(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _sizes(tensors: Iterable[Tensor]) -> list[int]:
    """Bytes of the distinct storages behind the tensors."""
    return list({_address(tensor): tensor.untyped_storage().nbytes() for tensor in tensors}.values())


def stored_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of the distinct storages that the tensors keep alive."""
    return sum(_sizes(tensors))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def _state_tensors(model: nn.Module) -> list[Tensor]:
    """Return what modules declare, by a method ``state_tensors``, as kept between steps."""
    declared = (getattr(module, "state_tensors", None) for module in model.modules())
    return [tensor for state in declared if callable(state) for tensor in state()]


def _optimizer_state(optimizer: torch.optim.Optimizer | None) -> list[Tensor]:
    return [tensor for state in (optimizer.state.values() if optimizer else ()) for tensor in _tensors(state)]
