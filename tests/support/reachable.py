"""What a step holds, found by walking Python's and autograd's objects: it shares no code with ledger and hooks."""

from collections.abc import Iterable, Iterator
from functools import partial
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Storages = dict[int, int]
"""Bytes by address."""
_LEAVES = (str, bytes, int, float, complex, bool, type, type(None), ModuleType, torch.dtype, torch.device, torch.Size)


def storages(tensors: Iterable[Tensor]) -> Storages:
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}


def nodes(outputs: Iterable[Tensor]) -> list[Any]:
    """Return the nodes of the graph behind tensors."""
    waiting, found = [t.grad_fn for t in outputs if t.grad_fn is not None], {}
    while waiting:
        node = waiting.pop()
        if node is not None and id(node) not in found:
            found[id(node)] = node
            waiting.extend(following for following, _ in node.next_functions)
    return list(found.values())


def saved_tensors(graph: Iterable[Any]) -> Iterator[Tensor]:
    """Yield what autograd itself saved, in its own nodes and in those of Python's functions."""
    for node in graph:
        values = list(node.saved_tensors) if hasattr(node, "saved_tensors") else []
        values += [getattr(node, name) for name in dir(node) if name.startswith("_saved_")]
        for value in values:
            yield from (each for each in (value if isinstance(value, list | tuple) else [value]) if isinstance(each, Tensor))


def tensors_behind(roots: Iterable[Any]) -> list[Tensor]:
    """Return the tensors that objects hold: in attributes, containers, closures and bound arguments.

    Also arrays and random generators' states, as tensors.
    """
    waiting, seen, found = list(roots), {}, []
    while waiting:
        value = waiting.pop()
        if isinstance(value, _LEAVES) or id(value) in seen:
            continue
        seen[id(value)] = value
        if isinstance(value, Tensor | np.ndarray | torch.Generator):
            found.append(_as_tensor(value))
        elif isinstance(value, dict):
            waiting.extend([*value.keys(), *value.values()])
        elif isinstance(value, list | tuple | set | frozenset):
            waiting.extend(value)
        elif isinstance(value, FunctionType):
            waiting.extend([cell.cell_contents for cell in value.__closure__ or ()] + [*(value.__defaults__ or ())])
        elif isinstance(value, MethodType):
            waiting.append(value.__self__)
        elif isinstance(value, partial):
            waiting.extend([value.func, value.args, value.keywords])
        else:
            slots = [getattr(value, name, None) for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
            waiting.extend([*getattr(value, "__dict__", {}).values(), *slots])
    return found


def _as_tensor(value: Tensor | np.ndarray | torch.Generator) -> Tensor:
    if isinstance(value, torch.Generator):
        return value.get_state()
    return value if isinstance(value, Tensor) else torch.from_numpy(value)


def held_storages(model: nn.Module, outputs: Iterable[Tensor], given: Iterable[Tensor]) -> tuple[Storages, Storages]:
    """Return what autograd saved for these outputs, and what else nodes and modules hold; without weights and the given."""
    weights = [*model.parameters(), *model.buffers(), *(p.grad for p in model.parameters() if p.grad is not None)]
    graph, known = nodes(outputs), storages([*weights, *given])
    contexts = [vars(node) for node in graph if hasattr(node, "__dict__")]
    saved, others = storages(saved_tensors(graph)), storages(tensors_behind([*contexts, *map(vars, model.modules())]))
    hung = {place: size for place, size in others.items() if place not in known and place not in saved}
    return {place: size for place, size in saved.items() if place not in known}, hung
