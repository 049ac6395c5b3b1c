"""Drafts: allocations of a budget to the saved inputs, from what was measured about each; nothing here runs a model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from fedact.compression import Method
from fedact.planner.gradient_errors import GradientErrors
from fedact.planner.knapsack import MAX_STATES, Option, allocate
from fedact.planner.saved_inputs import SavedInput

INTERVALS = 4
"""The interval between two measured levels is divided into so many, where a method has settings in between."""


class MethodOption(NamedTuple):
    """One method for a saved input, and the errors of the gradients that are computed from it, by layer."""

    method: Method
    errors: GradientErrors


@dataclass(frozen=True)
class Draft:
    """An allocation whose step has not been measured yet.

    options: by the saved input's key. layer_errors: expected, by trained layer; input_errors: each saved input's part of
    their sum. predicted_bytes: of the saved inputs alone.
    """

    depth: int
    micro_batch: int
    options: dict[str, MethodOption]
    saved_inputs: tuple[SavedInput, ...]
    layer_errors: dict[str, float]
    input_errors: dict[str, float]
    predicted_bytes: int

    @property
    def error(self) -> float:
        """The sum over the trained layers of ||g' - g||^2 / ||g||^2."""
        return sum(self.input_errors.values())

    @property
    def methods(self) -> dict[str, Method]:
        """The method of every layer: that of the saved input which its input is, or is rematerialized from."""
        return {name: self.options[saved.key].method for saved in self.saved_inputs for name in saved.layers}


def method_options(ladder: Sequence[Method], levels: Sequence[GradientErrors], places: Sequence[int]) -> list[MethodOption]:
    """Return the measured methods of a saved input, then those between two neighbours, with interpolated errors.

    places: of the methods in the whole ladder. Between two levels errors follow a power law; from none at all they rise in
    a straight line.
    """
    measured = [MethodOption(method, errors) for method, errors in zip(ladder, levels, strict=True)]
    between = []
    for (here, one), (next_place, other) in pairwise(zip(places, measured, strict=True)):
        for part in range(1, INTERVALS if next_place == here + 1 else 1):
            share = part / INTERVALS
            method = one.method.between(other.method, share)
            if method is not None:
                pairs = zip(one.errors, other.errors, strict=True)
                between.append(MethodOption(method, GradientErrors(*(_interpolated(*pair, share) for pair in pairs))))
    return measured + between


def _interpolated(one: Mapping[str, float], other: Mapping[str, float], share: float) -> dict[str, float]:
    return {
        name: error ** (1 - share) * other[name] ** share if error else share * other[name] for name, error in one.items()
    }


def option_for(option: MethodOption, saved: SavedInput) -> MethodOption:
    """Return an option with the errors of the layers that depend on one saved input, and no others."""
    weights = {name: option.errors.weights[name] for name in saved.layers if name in option.errors.weights}
    outputs = {name: option.errors.outputs[name] for name in saved.slope_layers if name in option.errors.outputs}
    return MethodOption(option.method, GradientErrors(weights, outputs))


def draft(
    depth: int,
    micro_batch: int,
    saved_inputs: Sequence[SavedInput],
    options: Mapping[str, Sequence[MethodOption]],
    sizes: Mapping[str, Sequence[int]],
    trained: Sequence[str],
    damping: float,
    capacity: int,
    max_states: int = MAX_STATES,
) -> Draft | None:
    """Return the allocation with the least sum of errors within the capacity (bytes), None where none fits.

    options: by the saved input's key, with their sizes in bytes for this micro-batch. trained: the layers in their order; an
    error in the gradient of one's output arrives, times ``damping``, in its own weight gradient and in those of all layers
    before it.
    """
    reach = {name: damping * (place + 1) for place, name in enumerate(trained)}
    groups = [
        [Option(size, _total_error(option, reach)) for size, option in zip(sizes[key], options[key], strict=True)]
        for key in (saved.key for saved in saved_inputs)
    ]
    places = allocate(groups, capacity, max_states)
    if places is None:
        return None
    chosen = {saved.key: options[saved.key][place] for saved, place in zip(saved_inputs, places, strict=True)}
    costs = [group[place] for group, place in zip(groups, places, strict=True)]
    input_errors = {saved.key: cost.error for saved, cost in zip(saved_inputs, costs, strict=True)}
    weights = {name: error for option in chosen.values() for name, error in option.errors.weights.items()}
    outputs = {name: error for option in chosen.values() for name, error in option.errors.outputs.items()}
    layer_errors, arriving = {}, 0.0
    for name in reversed(trained):
        arriving += damping * outputs.get(name, 0.0)
        layer_errors[name] = weights.get(name, 0.0) + arriving
    size = sum(cost.size for cost in costs)
    return Draft(depth, micro_batch, chosen, tuple(saved_inputs), layer_errors, input_errors, size)


def _total_error(option: MethodOption, reach: Mapping[str, float]) -> float:
    """Return what an option adds to the sum of all trained layers' errors."""
    weights = sum(error for name, error in option.errors.weights.items() if name in reach)
    return weights + sum(error * reach[name] for name, error in option.errors.outputs.items() if name in reach)
