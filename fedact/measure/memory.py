"""The memory of a training step, measured: saved, state, peak and paper bytes, from the ledger of its storages.

A storage is *saved* while autograd has it packed (saved_tensors_hooks name the owner). What hooks cannot see (nested hooks,
checkpointing, tensors in an attribute or a closure) is saved from the next backward operation on, if it was made inside a
module that did not return it, or if the backward pass reads again what the forward pass made or read.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.parameter import is_lazy

from fedact.measure.ledger import Ledger, address, tensors_in
from fedact.measure.lifetimes import Lifetime, peak
from fedact.measure.paper_inputs import Running
from fedact.measure.stored import Stored, counted, observed, timeline_of
from fedact.measure.timeline import Timeline
from fedact.torch_private import blind


@dataclass
class Memory:
    """Bytes of the steps inside a ``measure_memory`` block; all zero until the block ends.

    saved_bytes: the most held at any moment between operations for backward operations still to run, states included.
    state_bytes: what methods keep from step to step, a part of saved_bytes. peak_bytes: the most alive at any moment above
    parameters, buffers, gradients, optimizer state and the raw inputs. paper_bytes: the papers' "activation memory", 4 bytes
    x stored elements of the inputs of trained convolutions, and of trained linear layers on tokens, and nothing else.
    hidden_bytes: the part of saved_bytes that saved_tensors_hooks did not see. by_layer: saved_bytes without state, by the
    module's name (``""``: outside of every module).
    working_bytes: how far the peak is raised by what methods work with where that may follow the data. timeline: of the
    step, to take its bytes with other sizes. Both where methods said what they store.
    """

    saved_bytes: int = 0
    state_bytes: int = 0
    peak_bytes: int = 0
    paper_bytes: int = 0
    hidden_bytes: int = 0
    by_layer: dict[str, int] = field(default_factory=dict)
    working_bytes: int = 0
    timeline: Timeline | None = field(default=None, repr=False, compare=False)


class Stateful(Protocol):
    """An optimizer, torch's or another: its state's values hold the tensors that it keeps from step to step."""

    @property
    def state(self) -> Any: ...


@contextmanager
def measure_memory(
    model: nn.Module, inputs: Any = (), optimizer: Stateful | None = None, stored: Stored | None = None
) -> Iterator[Memory]:
    """Yield a Memory that has the bytes of the steps inside the ``with`` block once it ends.

    inputs: the raw images and labels, in any nesting, which are not counted; nor is the state of the optimizer. stored: says
    what methods store, for a timeline of the one step in the block.

    Not counted either are the parameters, buffers and gradients of the model and of every other module that runs in the
    block (a second network, a criterion), and leaf tensors that require a gradient and were there before: whatever storage
    is theirs at the time, also one that an assignment (``p.data = ...``, ``p.grad = ...``) made theirs in the block, which
    counts only while it is computed. Weights of a function that are neither, such as a frozen teacher's in plain tensors,
    count as what any other tensor from before the block does. Not counted as saved: the gradient that a backward pass
    starts from, where the caller made it before the block.

    Measuring changes nothing: weights, buffers, gradients and random numbers are those of the same steps unmeasured. The
    ledger follows every operation in Python: steps take 1.1 to 2 times as long.

    >>> import fedact, torch
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3))
    >>> x = torch.rand(4, 3, 8, 8)
    >>> with fedact.measure_memory(model, inputs=x) as memory:
    ...     model(x).sum().backward()
    >>> memory.by_layer["2"] == 4 * 8 * 6 * 6 * 4  # the second convolution's input, 4 bytes an element
    True
    >>> memory.saved_bytes < memory.peak_bytes
    True
    """
    memory = Memory()
    with followed(model, inputs, optimizer, stored) as ledger:
        yield memory
    memory.state_bytes = ledger.state_bytes
    _fill(memory, ledger, ledger.lifetimes)
    if stored is not None:
        memory.timeline = timeline_of(ledger, ledger.lifetimes, stored)
        memory.working_bytes = memory.timeline.working_bytes


@contextmanager
def followed(
    model: nn.Module, inputs: Any = (), optimizer: Stateful | None = None, stored: Stored | None = None
) -> Iterator[Ledger]:
    """Yield the ledger of the block's steps, whose lifetimes are complete once it ends; see ``measure_memory``."""
    # Once: walking a network takes as long as a small step of it.
    modules = dict(model.named_modules())
    ledger = Ledger([*_weights(modules.values()), *tensors_in(_optimizer_state(optimizer)), *tensors_in(inputs)])
    declaring = {name: module for name, module in modules.items() if callable(getattr(module, "state_tensors", None))}
    states = {name: _states(module) for name, module in declaring.items()}
    for name, tensors in states.items():
        ledger.declare_state(name, tensors)
    with ExitStack() as stack:
        if stored is not None:
            stack.enter_context(observed(stored, ledger))
        _register_hooks(modules, declaring, ledger, stack)
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(ledger.pack, ledger.unpack))
        stack.enter_context(ledger)
        yield ledger
    new_states = {name: _states(module) for name, module in declaring.items()}
    ledger.state_bytes = max(stored_bytes(chain(*each.values())) for each in (states, new_states))
    ledger.note_weights(_weights(model.modules()))
    optimizers = {id(ledger.find(tensor)) for tensor in _optimizer_state(optimizer)}
    ledger.lifetimes = [life for life in ledger.lifetimes if id(life) not in optimizers]


def _weights(modules: Iterable[nn.Module]) -> list[Tensor]:
    """Return the modules' parameters, buffers and gradients as they are now, but parameters without a shape as yet."""
    found: list[Tensor | None] = []
    for module in modules:
        for parameter in module._parameters.values():
            if parameter is not None and not is_lazy(parameter):
                found += (parameter, parameter.grad)
        found += module._buffers.values()
    return tensors_in(found)


def _fill(memory: Memory, ledger: Ledger, lives: list[Lifetime]) -> None:
    """Fill a Memory from the lifetimes in a finished ledger."""
    end = ledger.clock + 1.0
    held = [(life, span) for life in lives for span in life.held(ledger.backward_times, end)]
    held_bytes, moment = peak((*span, life.size) for life, span in held)
    memory.saved_bytes = held_bytes + memory.state_bytes
    memory.peak_bytes = max(peak((life.birth, life.death, life.size) for life in counted(lives))[0], memory.saved_bytes)
    memory.paper_bytes, _ = peak((start, stop, int(size)) for (start, stop, size), _ in ledger.paper.uses)
    for life, (start, stop) in held:
        if start <= moment <= stop:
            memory.by_layer[life.owner] = memory.by_layer.get(life.owner, 0) + life.size
            memory.hidden_bytes += 0 if life.packed else life.size


def _register_hooks(
    modules: Mapping[str, nn.Module], declaring: Mapping[str, nn.Module], ledger: Ledger, stack: ExitStack
) -> None:
    """Tell the ledger the running module, the model's output, and whose weights and gradients are whose, by hooks.

    modules: the model's, by name; declaring: those that declare a state. stack: takes the hooks off when it is closed.
    """
    watched: dict[int, nn.Parameter] = {}
    # Keeping the buffers keeps their ids from being given to others.
    buffers = {id(buffer): buffer for module in modules.values() for buffer in module._buffers.values()}
    names, followed = {id(module): name for name, module in modules.items()}, set[int]()

    def watch(module: nn.Module) -> None:
        for parameter in module._parameters.values():
            if id(parameter) not in watched and parameter is not None and parameter.requires_grad and not is_lazy(parameter):
                watched[id(parameter)] = parameter
                # A function of its own, for a method cannot be marked.
                note = blind(lambda parameter: ledger.note_gradient(parameter))
                hook = parameter.register_post_accumulate_grad_hook(note)  # type: ignore[no-untyped-call]
                stack.callback(hook.remove)

    def note_new_buffers(module: nn.Module) -> None:
        if new := [buffer for buffer in module._buffers.values() if id(buffer) not in buffers]:
            ledger.note_weights(new)

    def enter(module: nn.Module, args: Any) -> None:
        # Of every module that runs, the model's or not: an assignment may have made other tensors its weights since.
        if module._parameters:
            ledger.note_weights(module._parameters.values())
            watch(module)
        note_new_buffers(module)
        if id(module) not in names:
            return
        if id(module) not in followed:
            followed.add(id(module))
            stack.callback(module.register_forward_hook(blind(leave), always_call=True).remove)
        ledger.modules.append(
            Running(names[id(module)], module, args[0].dim() if args and isinstance(args[0], Tensor) else 0)
        )
        ledger.paper.possible.clear()

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        if ledger.modules:
            ledger.modules.pop()
        note_new_buffers(module)
        if (name := names[id(module)]) in declaring:
            ledger.declare_state(name, _states(module))
        if not ledger.modules:
            ledger.note_output(output)

    for module in modules.values():
        watch(module)
    stack.callback(register_module_forward_pre_hook(blind(enter)).remove)


def maximum_memory(memories: Iterable[Memory]) -> Memory:
    """Return the maximum of every figure; by_layer is that of the most saved bytes, working_bytes that of the peak."""
    memories = list(memories)
    names = ("saved_bytes", "state_bytes", "peak_bytes", "paper_bytes", "hidden_bytes")
    figures = {name: max(getattr(memory, name) for memory in memories) for name in names}
    working_bytes = max(memories, key=lambda memory: memory.peak_bytes).working_bytes
    by_layer = max(memories, key=lambda memory: memory.saved_bytes).by_layer
    return Memory(**figures, by_layer=by_layer, working_bytes=working_bytes)


def stored_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of the distinct storages behind the tensors; a view counts its whole storage."""
    return sum({address(tensor): tensor.untyped_storage().nbytes() for tensor in tensors}.values())


def _states(module: Any) -> list[Tensor]:
    """Return the tensors that a module keeps between steps, declared by its method ``state_tensors``."""
    return list(module.state_tensors())


def _optimizer_state(optimizer: Stateful | None) -> list[Tensor]:
    return [tensor for state in (optimizer.state.values() if optimizer else ()) for tensor in tensors_in(state)]
