"""What a training step really holds: the figures of the ledger, by their definitions.

A storage is *held* while autograd has it packed (saved_tensors_hooks name the owner). What hooks cannot see (nested hooks,
checkpointing, tensors hung on an attribute or in a closure) is held from the next backward operation on, if it was made
inside a module that did not return it, or if the backward pass reads again what the forward pass made or read.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fedact.measure.ledger import Ledger, Life, address, highest, tensors_in


@dataclass
class Memory:
    """Bytes of one measured stretch of training; all zero until the ``with`` block ends.

    saved_bytes: the maximum of held bytes (headline "activation memory"), state_bytes of it the methods' own state.
    peak_bytes: the most bytes alive above parameters, buffers, gradients, optimizer state and the raw inputs.
    paper_bytes: 4 bytes x stored elements of the trained convolutions' inputs, the papers' figure.
    hidden_bytes: the part of saved_bytes that saved_tensors_hooks did not see.
    by_layer: saved_bytes without state, by module name (``""`` is outside of every module, the loss).
    """

    saved_bytes: int = 0
    state_bytes: int = 0
    peak_bytes: int = 0
    paper_bytes: int = 0
    hidden_bytes: int = 0
    by_layer: dict[str, int] = field(default_factory=dict)


@contextmanager
def measure_memory(model: nn.Module, inputs: Any = (), optimizer: torch.optim.Optimizer | None = None) -> Iterator[Memory]:
    """Measure what the steps inside the ``with`` block hold.

    inputs: the raw images and labels, which are not counted. optimizer: its state is not counted either.
    Yields a Memory that is filled when the block ends; the definitions are its docstring. Not seen as held: a root gradient
    that the caller made before the block.
    """
    memory, state = Memory(), _state_tensors(model)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    ledger = Ledger([*model.parameters(), *model.buffers(), *gradients, *_optimizer_state(optimizer), *tensors_in(inputs)])
    for name, tensors in _declared(model):
        ledger.declares(name, tensors)
    with ExitStack() as stack:
        for handle in _watch(model, ledger):
            stack.callback(handle.remove)
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(ledger.pack, lambda pack: pack.tensor))
        stack.enter_context(ledger)
        yield memory
    new_state = _state_tensors(model)
    memory.state_bytes = max(stored_bytes(state), stored_bytes(new_state))
    optimizers = {id(ledger.find(tensor)) for tensor in _optimizer_state(optimizer)}
    _settle(memory, ledger, [life for life in ledger.lives if id(life) not in optimizers])


def _settle(memory: Memory, ledger: Ledger, lives: list[Life]) -> None:
    """Read the figures off the finished ledger."""
    end = ledger.clock + 1.0
    held = [(life, span) for life in lives for span in life.held(ledger.backward_times, end)]
    held_bytes, moment = highest((*span, life.size) for life, span in held)
    # While a state is made anew, the old one is there too.
    alive = [(life.birth, life.death, life.size) for life in lives if life.birth or life.entered or life.state_until]
    memory.saved_bytes = held_bytes + memory.state_bytes
    memory.peak_bytes = max(highest(alive)[0], memory.saved_bytes)
    memory.paper_bytes, _ = highest((start, stop, int(size)) for start, stop, size in ledger.paper)
    for life, (start, stop) in held:
        if start <= moment <= stop:
            memory.by_layer[life.owner] = memory.by_layer.get(life.owner, 0) + life.size
            memory.hidden_bytes += 0 if life.packed else life.size


def _watch(model: nn.Module, ledger: Ledger) -> Iterator[torch.utils.hooks.RemovableHandle]:
    """Tell the ledger which module runs, what the outermost one returns, and what becomes a gradient."""
    for name, module in model.named_modules():

        def enter(module: nn.Module, args: Any, name: str = name) -> None:
            ledger.modules.append((name, module))

        def leave(module: nn.Module, args: Any, output: Any, name: str = name) -> None:
            if ledger.modules:
                ledger.modules.pop()
            for tensors in _states_of(module):
                ledger.declares(name, tensors)
            if not ledger.modules:
                ledger.returned(output)

        yield module.register_forward_pre_hook(enter, prepend=True)
        yield module.register_forward_hook(leave, always_call=True)
    for parameter in model.parameters():
        if parameter.requires_grad:
            yield parameter.register_post_accumulate_grad_hook(ledger.became_gradient)  # type: ignore[no-untyped-call]


def maximum_memory(memories: Iterable[Memory]) -> Memory:
    """Return the most of every figure; by layer, those of the step that saved the most."""
    found = list(memories)
    names = ("saved_bytes", "state_bytes", "peak_bytes", "paper_bytes", "hidden_bytes")
    figures = {name: max(getattr(memory, name) for memory in found) for name in names}
    return Memory(**figures, by_layer=max(found, key=lambda memory: memory.saved_bytes).by_layer)


def stored_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of the distinct storages that the tensors keep alive."""
    return sum({address(tensor): tensor.untyped_storage().nbytes() for tensor in tensors}.values())


def _declared(model: nn.Module) -> Iterator[tuple[str, list[Tensor]]]:
    """Yield what modules declare, by a method ``state_tensors``, as kept between steps, with the modules' names."""
    for name, module in model.named_modules():
        for tensors in _states_of(module):
            yield name, tensors


def _state_tensors(model: nn.Module) -> list[Tensor]:
    return [tensor for _, tensors in _declared(model) for tensor in tensors]


def _states_of(module: nn.Module) -> Iterator[list[Tensor]]:
    declared = getattr(module, "state_tensors", None)
    if callable(declared):
        yield list(declared())


def _optimizer_state(optimizer: torch.optim.Optimizer | None) -> list[Tensor]:
    return [tensor for state in (optimizer.state.values() if optimizer else ()) for tensor in tensors_in(state)]
