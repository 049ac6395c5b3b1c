"""The memory of a training step, measured: saved, state, peak and paper bytes, from the ledger of its storages.

A storage is *saved* while autograd has it packed (saved_tensors_hooks name the owner). What hooks cannot see (nested hooks,
checkpointing, tensors in an attribute or a closure) is saved from the next backward operation on, if it was made inside a
module that did not return it, or if the backward pass reads again what the forward pass made or read.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fedact.measure.ledger import Ledger, Lifetime, address, peak, tensors_in


@dataclass
class Memory:
    """Bytes of the steps inside a ``measure_memory`` block; all zero until the block ends.

    saved_bytes: the most held at any moment between operations for backward operations still to run, states included.
    state_bytes: what methods keep from step to step, a part of saved_bytes. peak_bytes: the most alive at any moment above
    parameters, buffers, gradients, optimizer state and the raw inputs. paper_bytes: the papers' "activation memory", 4 bytes
    x stored elements of the trained convolutions' inputs and nothing else. hidden_bytes: the part of saved_bytes that
    saved_tensors_hooks did not see. by_layer: saved_bytes without state, by module name (``""``: outside of every module).
    """

    saved_bytes: int = 0
    state_bytes: int = 0
    peak_bytes: int = 0
    paper_bytes: int = 0
    hidden_bytes: int = 0
    by_layer: dict[str, int] = field(default_factory=dict)


@contextmanager
def measure_memory(model: nn.Module, inputs: Any = (), optimizer: torch.optim.Optimizer | None = None) -> Iterator[Memory]:
    """Yield a Memory that has the bytes of the steps inside the ``with`` block once it ends.

    inputs: the raw images and labels, in any nesting, which are not counted; nor is the state of the optimizer. The ledger
    follows every operation in Python: steps take 1.1 to 2 times as long. Not counted as saved: the gradient that a backward
    pass starts from, where the caller made it before the block.

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
    memory, state = Memory(), _state_tensors(model)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    ledger = Ledger([*model.parameters(), *model.buffers(), *gradients, *_optimizer_state(optimizer), *tensors_in(inputs)])
    for name, tensors in _declared(model):
        ledger.declare_state(name, tensors)
    with ExitStack() as stack:
        for handle in _register_hooks(model, ledger):
            stack.callback(handle.remove)
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(ledger.pack, lambda pack: pack.tensor))
        stack.enter_context(ledger)
        yield memory
    new_state = _state_tensors(model)
    memory.state_bytes = max(stored_bytes(state), stored_bytes(new_state))
    optimizers = {id(ledger.find(tensor)) for tensor in _optimizer_state(optimizer)}
    _fill(memory, ledger, [life for life in ledger.lifetimes if id(life) not in optimizers])


def _fill(memory: Memory, ledger: Ledger, lives: list[Lifetime]) -> None:
    """Fill a Memory from the lifetimes in a finished ledger."""
    end = ledger.clock + 1.0
    held = [(life, span) for life in lives for span in life.held(ledger.backward_times, end)]
    held_bytes, moment = peak((*span, life.size) for life, span in held)
    # While a state is made anew, the old one is there too.
    alive = [(life.birth, life.death, life.size) for life in lives if life.birth or life.entered or life.state_until]
    memory.saved_bytes = held_bytes + memory.state_bytes
    memory.peak_bytes = max(peak(alive)[0], memory.saved_bytes)
    memory.paper_bytes, _ = peak((start, stop, int(size)) for start, stop, size in ledger.paper)
    for life, (start, stop) in held:
        if start <= moment <= stop:
            memory.by_layer[life.owner] = memory.by_layer.get(life.owner, 0) + life.size
            memory.hidden_bytes += 0 if life.packed else life.size


def _register_hooks(model: nn.Module, ledger: Ledger) -> Iterator[torch.utils.hooks.RemovableHandle]:
    """Tell the ledger the running module, the model's output and new gradients, by hooks; yield the hooks' handles."""
    for name, module in model.named_modules():

        def enter(module: nn.Module, args: Any, name: str = name) -> None:
            ledger.modules.append((name, module))

        def leave(module: nn.Module, args: Any, output: Any, name: str = name) -> None:
            if ledger.modules:
                ledger.modules.pop()
            for tensors in _declared_states(module):
                ledger.declare_state(name, tensors)
            if not ledger.modules:
                ledger.note_output(output)

        yield module.register_forward_pre_hook(enter, prepend=True)
        yield module.register_forward_hook(leave, always_call=True)
    for parameter in model.parameters():
        if parameter.requires_grad:
            yield parameter.register_post_accumulate_grad_hook(ledger.note_gradient)  # type: ignore[no-untyped-call]


def maximum_memory(memories: Iterable[Memory]) -> Memory:
    """Return the maximum of every figure; by_layer is that of the memory with the most saved bytes."""
    memories = list(memories)
    names = ("saved_bytes", "state_bytes", "peak_bytes", "paper_bytes", "hidden_bytes")
    figures = {name: max(getattr(memory, name) for memory in memories) for name in names}
    return Memory(**figures, by_layer=max(memories, key=lambda memory: memory.saved_bytes).by_layer)


def stored_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of the distinct storages behind the tensors; a view counts its whole storage."""
    return sum({address(tensor): tensor.untyped_storage().nbytes() for tensor in tensors}.values())


def _declared(model: nn.Module) -> Iterator[tuple[str, list[Tensor]]]:
    """Yield the modules' names and the tensors they keep between steps, declared by a method ``state_tensors``."""
    for name, module in model.named_modules():
        for tensors in _declared_states(module):
            yield name, tensors


def _state_tensors(model: nn.Module) -> list[Tensor]:
    return [tensor for _, tensors in _declared(model) for tensor in tensors]


def _declared_states(module: nn.Module) -> Iterator[list[Tensor]]:
    declared = getattr(module, "state_tensors", None)
    if callable(declared):
        yield list(declared())


def _optimizer_state(optimizer: torch.optim.Optimizer | None) -> list[Tensor]:
    return [tensor for state in (optimizer.state.values() if optimizer else ()) for tensor in tensors_in(state)]
