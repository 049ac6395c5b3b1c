"""What a step saves at each depth, and beside its saved inputs: the same for all methods of one ``recompute`` and room."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor, nn

from fedact.compression import Compressed, Method, State, Traits
from fedact.compression.exact import IDENTITY, Exact
from fedact.compression.matrix_product import channels_last
from fedact.compression.method import NO_STATE
from fedact.nn.channels import layers_over_last
from fedact.nn.gradient_path import downstream
from fedact.nn.graph import consumers
from fedact.nn.layers import TRAINED
from fedact.nn.layers.base import EXAMPLE_NORMS
from fedact.nn.rematerialization import Rematerializations, call_nodes
from fedact.nn.streams.rematerialization import step_rematerializations
from fedact.nn.surgery import smooth_activations
from fedact.planner.problem import Problem
from fedact.planner.saved_inputs import SavedInput, saved_inputs
from fedact.planner.step_memory import measure_step


@dataclass(frozen=True)
class _Nothing(Method):
    """Saves nothing of an input, in whose place the backward pass sees zeros: what a step then holds is all the rest."""

    traits: ClassVar[Traits] = replace(IDENTITY, source="none: for measuring", keeps_input=False)

    def compress(self, x: Tensor, state: State = NO_STATE) -> Compressed:
        return Compressed((), (x.shape, x.dtype, x.new_empty(0)))

    def reconstruct(self, compressed: Compressed) -> Tensor:
        shape, dtype, like = compressed.metadata
        zeros: Tensor = like.new_zeros(shape, dtype=dtype)
        return zeros

    def predicted_bytes(self, x: Tensor | Sequence[int]) -> int:
        return 0


class StepStructure:
    """The saved inputs, the gradient path and the other saved bytes of every depth up to ``depth``, at one ``recompute``."""

    def __init__(self, problem: Problem, recompute: int, depth: int) -> None:
        self.problem, self.recompute, self.depth = problem, recompute, depth
        self._saved_inputs: dict[int, list[SavedInput]] = {}
        self._paths: dict[int, set[str]] = {}

    def saved_inputs(self, depth: int) -> list[SavedInput]:
        """Return the saved inputs at a depth."""
        if depth not in self._saved_inputs:
            methods = dict.fromkeys(layers_with_input(self.problem, depth), Exact().recomputing(self.recompute))
            self._saved_inputs[depth] = saved_inputs(self.problem.plain_model, methods, self.problem.room is not None)
        return self._saved_inputs[depth]

    def gradient_path(self, depth: int) -> set[str]:
        """Return the names of the modules that a gradient passes."""
        if depth not in self._paths:
            self._paths[depth] = downstream(self.problem.plain_model, self.problem.reached_from(depth))
        return self._paths[depth]

    @cached_property
    def inputs(self) -> dict[str, Tensor]:
        """One example's saved inputs, by key."""
        keys = [saved.key for saved in self.saved_inputs(self.depth)]
        inputs = self.problem.inputs([*self.problem.trained(self.depth), *keys], 1)
        return {key: inputs[key] for key in keys}

    @cached_property
    def rematerializations(self) -> Rematerializations:
        """What is rematerialized at the greatest depth, and how."""
        methods = dict.fromkeys(layers_with_input(self.problem, self.depth), Exact().recomputing(self.recompute))
        path, in_streams = self.gradient_path(self.depth), self.problem.room is not None
        return step_rematerializations(self.problem.plain_model, methods, path, in_streams)

    @cached_property
    def bytes_beside(self) -> dict[str, int]:
        """The saved bytes of one example's step of which methods store nothing, by module."""
        nothing = dict.fromkeys(layers_with_input(self.problem, self.depth), _Nothing(derive=self.recompute))
        return dict(measure_step(self.problem, nothing, 1).by_layer)

    @cached_property
    def other_bytes(self) -> dict[str, int]:
        """The saved bytes of one example's step besides the saved inputs, by module: masks, the loss."""
        # The owner of a saved input is whichever layer reads it last.
        owners = {name for saved in self.saved_inputs(self.depth) for name in (saved.key, *saved.layers, *saved.masks)}
        return {name: size for name, size in self.bytes_beside.items() if name not in owners}

    @cached_property
    def shared_bytes(self) -> int:
        """The bytes of one example's inputs that other modules save too where all are saved as they are: they count once."""
        exact = dict.fromkeys(layers_with_input(self.problem, self.depth), Exact().recomputing(self.recompute))
        saved = measure_step(self.problem, exact, 1).saved_bytes
        inputs = sum(x.nbytes for key, x in self.inputs.items() if key not in self.images)
        return max(0, inputs + self.overhead_bytes(self.depth, 1) - saved)

    @cached_property
    def readers(self) -> dict[str, int]:
        """How many layers save the same tensor as this one, itself included, each with codes of its own: it counts once."""
        calls, keys = call_nodes(self.problem.plain_model), [saved.key for saved in self.saved_inputs(self.depth)]
        sources = {key: calls[key].all_input_nodes[0] for key in keys if key in calls}
        return {key: [*sources.values()].count(source) for key, source in sources.items()}

    @cached_property
    def images(self) -> set[str]:
        """The saved inputs that are the raw images, which count nothing."""
        x, over_last = self.problem.x[:1], layers_over_last(self.problem.model)
        as_given = {key: channels_last(found) if key in over_last else found for key, found in self.inputs.items()}
        return {key for key, found in as_given.items() if x.shape == found.shape and torch.equal(x, found)}

    @cached_property
    def mask_sources(self) -> dict[str, str]:
        """The activation functions that need no mask where an input is saved as it is, with that input's key."""
        model, sources = self.problem.plain_model, dict[str, str]()
        keys = [saved.key for saved in self.saved_inputs(self.depth)]
        readable = [key for key in keys if type(model.get_submodule(key)) in TRAINED]
        relus = {name: calls for name, calls in consumers(model).items() if _is_relu(model.get_submodule(name))}
        for name, calls in relus.items():
            if found := [key for key in readable if all(key in readers for readers in calls)]:
                sources[name] = found[0]
        return sources

    def overhead_bytes(self, depth: int, micro_batch: int) -> int:
        """Return the bytes saved besides the saved inputs, whatever their methods."""
        # A module on the gradient path, or one that contains such a module; "" is the whole model.
        modules = [name.split(".") for name in self.gradient_path(depth)]
        path = {".".join(parts[:count]) for parts in modules for count in range(len(parts) + 1)}
        return self._overhead_bytes(path, micro_batch)

    def least_overhead_bytes(self, depth: int, micro_batch: int) -> int:
        """Return at most ``overhead_bytes``: what code between modules saves may be there for deeper layers alone."""
        if depth == self.depth:
            return self.overhead_bytes(depth, micro_batch)
        return self._overhead_bytes(self.gradient_path(depth), micro_batch)

    def _overhead_bytes(self, path: set[str], micro_batch: int) -> int:
        sizes = (size for name, size in self.other_bytes.items() if name in path and name not in self.mask_sources)
        return micro_batch * sum(sizes)

    def least_bytes(self, depth: int, micro_batch: int) -> int:
        """Return fewer bytes than any step saves: what is kept as it is takes more than the mask that it spares."""
        return self.overhead_bytes(depth, micro_batch) + micro_batch * sum(self.mask_bytes(depth).values())

    def mask_bytes(self, depth: int) -> dict[str, int]:
        """Return the bytes of one example's masks that are saved beside each input unless it is saved as it is.

        Those of norms of each example's are their inverse deviations.
        """
        path, sizes = self.gradient_path(depth), dict[str, int]()
        for saved in self.saved_inputs(self.depth):
            norms = {name for name in (saved.key, *saved.layers) if name in path and self._is_norm(name)}
            sizes[saved.key] = sum(self.bytes_beside.get(name, 0) for name in norms)
        for activation, key in self.mask_sources.items():
            sizes[key] += self.other_bytes.get(activation, 0) if activation in path else 0
        return sizes

    def _is_norm(self, name: str) -> bool:
        return isinstance(self.problem.plain_model.get_submodule(name), EXAMPLE_NORMS)


def distinct_recomputes(recomputes: Sequence[int], structure: Callable[[int], StepStructure]) -> Iterator[int]:
    """Yield recomputes in their order, without those that make the same again as one before.

    structure: of the steps with a recompute, at the depth in question.
    """
    first, *others = recomputes
    yield first
    known = [structure(first).rematerializations] if others else []
    for recompute in others:
        if structure(recompute).rematerializations not in known:
            known.append(structure(recompute).rematerializations)
            yield recompute


def _is_relu(module: nn.Module) -> bool:
    return type(module) in (nn.ReLU, nn.ReLU6)


def layers_with_input(problem: Problem, depth: int) -> list[str]:
    """Return the layers that save an input: the trained ones, and smooth activation functions on the gradient path."""
    trained = problem.trained(depth)
    path = downstream(problem.plain_model, problem.reached_from(depth))
    return [*trained, *(name for name in smooth_activations(problem.model) if name in path)]
