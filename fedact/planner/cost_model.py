"""Estimated seconds of a step: a rule of thumb, the same on every machine, that breaks ties between equally good plans."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn

from fedact.compression import Method
from fedact.planner.saved_inputs import SavedInput

CALL_SECONDS = 4e-5
"""A module's forward or backward pass on next to nothing."""
MULTIPLICATIONS_A_SECOND = 1.5e10


@dataclass(frozen=True)
class ModuleCosts:
    """Multiplications of each leaf module for one example, by the module's name."""

    multiplications: dict[str, float]

    def seconds(self, modules: Iterable[str], examples: int) -> float:
        """Return the estimated seconds of running these modules once, forward or backward."""
        names = list(modules)
        work = sum(self.multiplications.get(name, 0.0) for name in names)
        return len(names) * CALL_SECONDS + examples * work / MULTIPLICATIONS_A_SECOND


def measure_costs(model: nn.Module, x: Tensor) -> ModuleCosts:
    """Return the multiplications of every leaf module for one example, counted by running the model on x."""
    counts: dict[str, float] = {}

    def count(name: str, module: nn.Module, args: Any, output: Any) -> None:
        weight = getattr(module, "weight", None)
        if isinstance(output, Tensor):
            per_element = weight[0].numel() if isinstance(weight, Tensor) and weight.dim() > 1 else 1
            counts[name] = counts.get(name, 0.0) + output.numel() / len(x) * per_element

    leaves = [(name, module) for name, module in model.named_modules() if not list(module.children())]
    handles = [module.register_forward_hook(partial(count, name)) for name, module in leaves]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return ModuleCosts(counts)


def step_seconds(
    costs: ModuleCosts,
    gradient_path: Iterable[str],
    saved_inputs: Iterable[SavedInput],
    methods: Mapping[str, Method],
    elements: Mapping[str, int],
    micro_batch: int,
    batch_size: int,
) -> float:
    """Return the estimated seconds of a batch in micro-batches.

    gradient_path: names of the modules that a gradient passes. methods: by the saved input's key; elements: of that input,
    for one example.
    """
    seconds = costs.seconds(costs.multiplications, micro_batch) + 2 * costs.seconds(gradient_path, micro_batch)
    for saved in saved_inputs:
        seconds += sum(costs.seconds(chain, micro_batch) for chain in saved.chains)
        traits = methods[saved.key].traits
        seconds += traits.tensor_seconds + traits.element_seconds * elements[saved.key] * micro_batch
    return seconds * ceil(batch_size / micro_batch)
