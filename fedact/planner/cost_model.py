"""About how long a step takes: a rule of thumb that is the same on every machine, to choose between equally good plans."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn

from fedact.compression import Method
from fedact.planner.kept_tensors import Group

CALL_SECONDS = 4e-5
"""A module's forward or backward pass on next to nothing."""
MULTIPLICATIONS_A_SECOND = 1.5e10


@dataclass(frozen=True)
class Costs:
    """What the model's modules cost for one example: multiplications, by name."""

    multiplications: dict[str, float]

    def seconds(self, modules: Iterable[str], examples: int) -> float:
        """Return what running these modules once takes."""
        names = list(modules)
        work = sum(self.multiplications.get(name, 0.0) for name in names)
        return len(names) * CALL_SECONDS + examples * work / MULTIPLICATIONS_A_SECOND


def measure_costs(model: nn.Module, x: Tensor) -> Costs:
    """Return the multiplications of every leaf module for one example, by running the model on x."""
    found: dict[str, float] = {}

    def count(name: str, module: nn.Module, args: Any, output: Any) -> None:
        weight = getattr(module, "weight", None)
        if isinstance(output, Tensor):
            each = weight[0].numel() if isinstance(weight, Tensor) and weight.dim() > 1 else 1
            found[name] = found.get(name, 0.0) + output.numel() / len(x) * each

    leaves = [(name, module) for name, module in model.named_modules() if not list(module.children())]
    handles = [module.register_forward_hook(partial(count, name)) for name, module in leaves]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return Costs(found)


def step_seconds(
    costs: Costs,
    passed: Iterable[str],
    groups: Iterable[Group],
    methods: Mapping[str, Method],
    elements: Mapping[str, int],
    micro_batch: int,
    batch_size: int,
) -> float:
    """Return about how long a batch takes in micro-batches.

    passed: modules that a gradient passes. methods: of each group's key; elements: of its kept input, for one example.
    """
    one = costs.seconds(costs.multiplications, micro_batch) + 2 * costs.seconds(passed, micro_batch)
    for group in groups:
        one += sum(costs.seconds(chain, micro_batch) for chain in group.chains)
        traits = methods[group.key].traits
        one += traits.tensor_seconds + traits.element_seconds * elements[group.key] * micro_batch
    return one * ceil(batch_size / micro_batch)
