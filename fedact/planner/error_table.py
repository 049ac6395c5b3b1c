"""Gradient errors of many methods from one exact step: its inputs and output gradients say what each of them would do.

There is a table for networks of the usual kind; where there is none (a layer that is called twice, a weight that is
computed), ``measure_sensitivity`` runs the network once for every level.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.fx import Node

from fedact.compression import Method
from fedact.compression.exact import Exact
from fedact.compression.matrix_product import MatrixProduct, channels_last
from fedact.compression.operations import Normalization, Operation
from fedact.compression.temporal import convolution_of
from fedact.measure.step import Batch
from fedact.models.tasks import Loss
from fedact.nn.channels import as_methods_see, layers_over_last
from fedact.nn.graph import IDENTITIES
from fedact.nn.layers import CONVOLUTIONS, Masked, OutProjection, batch_of, weight_name
from fedact.nn.layers.base import has_weights
from fedact.nn.layers.example_norm import CompressedNorm
from fedact.nn.layers.parts import part_of
from fedact.nn.rematerialization import Rematerializations, call_nodes
from fedact.nn.restoration import uninstall
from fedact.nn.surgery import install
from fedact.planner.gradient_errors import GradientErrors, length, relative_distance
from fedact.planner.saved_inputs import SavedInput, path_to_activation
from fedact.planner.sensitivity import ExactGradients, gradients_of
from fedact.torch_private import is_observed

Rows = dict[tuple[SavedInput, Method], GradientErrors]
"""The errors of methods for saved inputs."""
LAYERS = *CONVOLUTIONS, nn.Linear, nn.MultiheadAttention, OutProjection, nn.BatchNorm1d, nn.BatchNorm2d
"""Trained layers whose weight gradient is computed here."""


class ExactNorms(NamedTuple):
    """The lengths of the exact gradients of weights and of outputs, by layer."""

    weights: dict[str, float]
    outputs: dict[str, float]


@dataclass(frozen=True, eq=False)
class ErrorTable:
    """What an exact step on a batch tells: from it, and from what stands in for a saved input, follow gradient errors.

    inputs: of the layers whose input is saved, as methods see them, by the key in ``saved_inputs``. paths: from every layer
    whose output gradient passes a slope that is computed from a saved input, the modules up to that activation function; not
    where another trained layer is between, whose own output gradient has the error.
    """

    model: nn.Module
    saved_inputs: Sequence[SavedInput]
    inputs: Mapping[str, Tensor]
    exact: ExactGradients
    derived: Rematerializations
    paths: Mapping[str, Sequence[str]]

    @cached_property
    def over_last(self) -> set[str]:
        """The layers whose input's channels are its last dimension."""
        return layers_over_last(self.model)

    @cached_property
    def norms(self) -> ExactNorms:
        """The lengths of the exact gradients."""
        return ExactNorms(*({name: length(g) for name, g in gradients.items()} for gradients in self.exact))

    def errors(
        self, wanted: Mapping[str, Sequence[Method]], spectra: Mapping[str, Any], rows: Rows
    ) -> dict[str, list[GradientErrors]]:
        """Return the errors of some methods for every saved input, as ``measure_sensitivity`` does.

        wanted: by a saved input's key; spectra: what ``Method.spectra`` returned. rows: those that tables of the same step
        with other rematerializations have found; extended. The model's methods are changed.
        """
        install_exact(self.model, self.saved_inputs)
        inputs = {saved.key: saved for saved in self.saved_inputs}
        found = {}
        for key, methods in wanted.items():
            saved = inputs[key]
            missing = [each for each in methods if (saved, _coder(each)) not in rows]
            for method, errors in zip(missing, self._row(saved, missing, spectra[key]), strict=True):
                rows[saved, _coder(method)] = errors
            found[key] = [rows[saved, _coder(each)] for each in methods]
        return found

    def _row(self, saved: SavedInput, methods: Sequence[Method], spectra: Any) -> list[GradientErrors]:
        """Return the errors that each of some methods for a saved input makes, by layer that depends on it."""
        lossy = [method for method in methods if not method.traits.keeps_input]
        with torch.no_grad():
            x = self.inputs[saved.key]
            rebuilt = lossy[0].reconstructions(x, lossy, spectra) if lossy else ()
            over_last = saved.key in self.over_last
            exact, *shown = (_Values(self.model, channels_last(each) if over_last else each) for each in (x, *rebuilt))
            found = [self._errors(saved, values, exact) for values in shown]
        none = GradientErrors(
            {name: 0.0 for name in saved.layers if name in self.exact.weights}, dict.fromkeys(saved.slope_layers, 0.0)
        )
        each = iter(found)
        return [none if method.traits.keeps_input else next(each) for method in methods]

    def _errors(self, saved: SavedInput, values: "_Values", exact: "_Values") -> GradientErrors:
        weights = dict[str, float]()
        for name in saved.layers:
            if name in self.exact.weights:
                module, x = self.model.get_submodule(name), values.of(self._chain(name))
                weight = getattr(module, weight_name(module))
                gradient = operation_of(module).weight_gradient(x, self.exact.outputs[name], weight)
                weights[name] = relative_distance(gradient, self.exact.weights[name], self.norms.weights[name])
        outputs = {
            name: relative_distance(
                self._output_gradient(name, values, exact), self.exact.outputs[name], self.norms.outputs[name]
            )
            if name in self.paths
            else 0.0
            for name in saved.slope_layers
        }
        return GradientErrors(weights, outputs)

    def _chain(self, name: str) -> tuple[str, ...]:
        """Return the modules that compute a layer's input from a saved one."""
        return self.derived.inputs[name].chain if name in self.derived.inputs else ()

    def _output_gradient(self, name: str, values: "_Values", exact: "_Values") -> Tensor:
        """Return a layer's output gradient where the slope of the activation function after it is of other values."""
        *between, activation = self.paths[name]
        module, gradient = self.model.get_submodule(activation), self.exact.outputs[activation]
        if isinstance(module, Masked):
            reader = self.derived.deferred.get(activation)
            gradient = module.slope().times(
                gradient, values.of(self._chain(reader) if reader else self.derived.masks[activation].chain)
            )
        else:
            chain = self._chain(activation)
            known = (exact.of(chain),) if isinstance(module, CompressedNorm) else ()
            gradient = module.slope_times(gradient, values.of(chain), *known)  # type: ignore[operator]
        for norm in map(self.model.get_submodule, reversed(between)):
            if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
                gradient = operation_of(norm).input_gradient(gradient.shape, gradient, norm.weight)
        return gradient


class _Values:
    """What a model's modules make of one reconstruction, chain by chain; every module runs once."""

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        self.model, self._of = model, {(): x}

    def of(self, chain: tuple[str, ...]) -> Tensor:
        """Return the output of a chain's last module, or the reconstruction."""
        if chain not in self._of:
            module, x = self.model.get_submodule(chain[-1]), self.of(chain[:-1])
            # An operation in place would change what the chain has made before. Not by a call, so that no hooks run.
            x = x.clone() if getattr(module, "inplace", False) else x
            self._of[chain] = type(module).forward(module, x)  # type: ignore[index]
        return self._of[chain]  # type: ignore[index]


def _coder(method: Method) -> Method:
    """Return a method that codes a tensor as this one does: how far back others are rematerialized from it is the same."""
    return method.codec.recomputing(min(method.recompute, 1))


def operation_of(module: nn.Module) -> Operation:
    """Return the operation of a trained layer, or of a batch norm with its running statistics."""
    if isinstance(module, CONVOLUTIONS):
        return convolution_of(module)
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        assert module.running_mean is not None
        assert module.running_var is not None
        return Normalization(module.running_mean, module.running_var, module.eps)
    return MatrixProduct()


def install_exact(model: nn.Module, saved_inputs: Sequence[SavedInput]) -> None:
    """Let a model take exact steps that save these inputs, or those of the layers that are rematerialized from them."""
    install(model, dict.fromkeys([name for saved in saved_inputs for name in saved.layers], Exact()))


def measure_table(
    model: nn.Module,
    batch: Batch,
    trained: Sequence[str],
    saved_inputs: Sequence[SavedInput],
    derived: Rematerializations,
    loss: Loss,
) -> ErrorTable | None:
    """Return the table for a batch, taken at once; None for a network out of the ordinary."""
    calls, modules = call_nodes(uninstall(model)), dict(model.named_modules())
    slope_layers = [name for saved in saved_inputs for name in saved.slope_layers]
    paths = {name: path_to_activation(calls[name], modules) for name in slope_layers if name in calls}
    between = [node for path in paths.values() for node in path[:-1]]
    if not (
        all(name in calls and _is_usual(modules[name]) for name in trained)
        and all(map(partial(_passes_slope, modules), between))
        and len(paths) == len(slope_layers)
        and not any(is_observed(module) for module in modules.values())
    ):
        return None
    names = {name: [str(node.target) for node in path] for name, path in paths.items()}
    names = {name: path for name, path in names.items() if not set(trained).intersection(path)}
    install_exact(model, saved_inputs)
    inputs, exact, over_last = dict[str, Tensor](), ExactGradients({}, {}), layers_over_last(model)

    def record(module: nn.Module, args: Any, name: str) -> None:
        inputs[name] = as_methods_see(batch_of(module, args[0]).detach().clone(), name in over_last)

    with ExitStack() as stack:
        for saved in saved_inputs:
            handle = model.get_submodule(saved.key).register_forward_pre_hook(partial(record, name=saved.key))
            stack.callback(handle.remove)
        watched = [*trained, *(path[-1] for path in names.values())]
        exact.weights.update(gradients_of(model, batch, None, loss, watched, watched, exact.outputs.__setitem__))
    convolutions = {key: modules[key] for key in inputs if isinstance(modules[key], CONVOLUTIONS)}
    single = (inputs[key].dim() != len(module.kernel_size) + 2 for key, module in convolutions.items())
    return None if any(single) else ErrorTable(model, saved_inputs, inputs, exact, derived, names)


def _is_usual(module: nn.Module) -> bool:
    """Tell whether a layer's weight is a parameter of its own, not computed from others."""
    usual = type(module) in LAYERS and part_of(module) is None
    return usual and module._parameters.get(weight_name(module)) is not None and has_weights(module)


def _passes_slope(modules: Mapping[str, nn.Module], node: Node) -> bool:
    """Tell whether what a layer's output passes before an activation function scales its channels at most."""
    return node.op == "call_module" and isinstance(modules[str(node.target)], (nn.BatchNorm1d, nn.BatchNorm2d, *IDENTITIES))
