"""The operations that are local in space, so that a tile of their output needs a tile of their input alone."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from inspect import signature
from math import inf
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Node

from fedact.compression.operations import pair
from fedact.nn.graph import operation_name
from fedact.nn.layers import DROPOUTS, Swapped
from fedact.nn.prefix.tiles_geometry import Window
from fedact.nn.streams.forward_bytes import ForwardBytes
from fedact.torch_private import batch_norm_out, is_observed

Axes = tuple[Window, Window]


@dataclass(frozen=True, eq=False)
class Windowed:
    """A convolution or pooling.

    axes: its windows along rows and columns. run: returns the output of an input, with so many rows and columns of padding
    on each side. outputs: output channels, None for as many as there are in. fill: what pads it. Of each element of the
    output, scratch: bytes that are alive beside it; products: multiplications.
    """

    axes: Axes
    run: Callable[[Tensor, tuple[int, int]], Tensor]
    outputs: int | None = None
    fill: float = 0.0
    scratch: int = 0
    products: int = 0

    def channels(self, inputs: int) -> int:
        """Return the number of output channels for so many input channels."""
        return inputs if self.outputs is None else self.outputs


@dataclass(frozen=True, eq=False)
class Pointwise:
    """A map of every element by itself.

    run_in_place: the same, written into its input, where there is such a way. changes_input: whether the model's own code
    writes it there.
    """

    run: Callable[[Tensor], Tensor]
    run_in_place: Callable[[Tensor], Tensor] | None = None
    changes_input: bool = False


@dataclass(frozen=True, eq=False)
class Sum:
    """The sum of two tensors of the same shape; changes_input: whether the model's own code writes it into the first."""

    changes_input: bool = False


@dataclass(frozen=True, eq=False)
class Streamed:
    """An inverted residual of whole maps, a few of its wide channels at a time.

    entry: the name of its first module. room: bytes for its wide maps. bytes: what is alive meanwhile. has_spare: whether it
    takes more where less else is alive than at the worst place, which is none in a prefix whose first stages run in tiles.
    """

    entry: str
    room: int
    bytes: ForwardBytes
    has_spare: bool = True

    def run(self, model: nn.Module, x: Tensor) -> Tensor:
        """Return the block's output."""
        room = None if self.has_spare else self.room
        y: Tensor = model.get_submodule(self.entry).stream.frozen_output(x, room)  # type: ignore[operator, union-attr]
        return y

    def peak_bytes(self, examples: int, channels_last: bool) -> int:
        """Return the most bytes alive, the output among them and the input not; channels_last: how that lies in memory."""
        return self.bytes.peak_bytes(examples, self.room, channels_last, self.has_spare)


@dataclass(frozen=True)
class Same:
    """An operation that returns its input: an identity, or dropout that is off."""


Operation = Windowed | Pointwise | Sum | Same
"""What a layer may be found to be."""

_IN_PLACE = (
    nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.SiLU, nn.Mish, nn.ELU, nn.SELU, nn.CELU, nn.LeakyReLU,
    nn.Threshold,
)  # fmt: skip
_NOT_IN_PLACE = (nn.GELU, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Softsign, nn.PReLU)
"""Activations with and without an argument to write into their input."""
_FUNCTIONS = {kind.__name__.lower() for kind in _IN_PLACE} | {"leaky_relu"}
_METHODS = {"relu", "sigmoid", "tanh", "clamp", "abs", "square"}
_ARITHMETIC = {"mul": "mul", "truediv": "div", "add": "add", "sub": "sub", "imul": "mul", "iadd": "add", "isub": "sub"}
"""Functions of one tensor: PyTorch's functional activations, methods with a twin in place, and arithmetic with numbers."""


def plain_class(module: nn.Module) -> Any:
    """Return a module's class without what surgery put in."""
    return module.plain if isinstance(module, Swapped) else type(module)


def module_operation(module: nn.Module) -> Operation | None:
    """Return a module as a local operation; None for others, and for those with hooks or a forward of their own."""
    if is_observed(module) or "forward" in vars(module) or vars(module).get("chains"):
        return None
    swapped, kind = isinstance(module, Swapped), plain_class(module)
    if kind is nn.Identity or (swapped and type(module).__name__ == f"No{kind.__name__}"):
        return Same()
    if kind in DROPOUTS:
        return None if module.training else Same()
    if isinstance(module, nn.Conv2d):
        return _convolution(module) if kind is nn.Conv2d else None
    if kind is nn.BatchNorm2d and module.running_mean is not None and (swapped or not module.training):
        return Pointwise(partial(_normalized, module), partial(_normalized_in_place, module))
    if isinstance(module, nn.MaxPool2d):
        return _max_pooling(module) if kind is nn.MaxPool2d else None
    if isinstance(module, nn.AvgPool2d):
        return _average_pooling(module) if kind is nn.AvgPool2d else None
    if kind in _IN_PLACE:
        return Pointwise(_activation(module, kind, False), _activation(module, kind, True), bool(module.inplace))
    return Pointwise(_activation(module, kind, None)) if kind in _NOT_IN_PLACE else None


def function_operation(node: Node) -> Operation | None:
    """Return a called function or method as a local operation, None for others."""
    name, tensors = operation_name(node), node.all_input_nodes
    rest: Any = node.args[1:]
    if name in ("add", "iadd", "add_") and len(tensors) == len(node.args) == 2 and not node.kwargs:
        return Sum(name != "add")
    if len(tensors) != 1 or not node.args or node.args[0] is not tensors[0]:
        return None
    if getattr(node.target, "__module__", "") == "torch.nn.functional" and name in _FUNCTIONS:
        bound = signature(node.target).bind(*node.args, **node.kwargs).arguments  # type: ignore[arg-type]
        given = {key: value for key, value in bound.items() if key not in ("input", "inplace")}
        run: Any = node.target
        return Pointwise(partial(run, **given), partial(run, **given, inplace=True), bool(bound.get("inplace")))
    if name.rstrip("_") in _METHODS and "out" not in node.kwargs:
        plain, in_place = (_with(name.rstrip("_") + end, rest, node.kwargs) for end in ("", "_"))
        return Pointwise(plain, in_place, name.endswith("_"))
    if name.rstrip("_") in _ARITHMETIC and len(rest) == 1 and isinstance(rest[0], int | float) and not node.kwargs:
        method = _ARITHMETIC[name.rstrip("_")]
        return Pointwise(_with(method, rest, {}), _with(f"{method}_", rest, {}), name.startswith("i") or name.endswith("_"))
    return None


def _with(method: str, rest: Sequence[Any], settings: dict[str, Any]) -> Callable[[Tensor], Tensor]:
    """Return a tensor's method with the arguments after the tensor."""
    return lambda x: getattr(x, method)(*rest, **settings)


def _activation(module: nn.Module, kind: Any, in_place: bool | None) -> Callable[[Tensor], Tensor]:
    """Return the plain forward of an activation, in place or not; None where it has no such setting."""
    twin = copy.copy(module)
    twin.__class__ = kind
    if in_place is not None:
        twin.inplace = in_place  # type: ignore[assignment]
    return partial(kind.forward, twin)


def _normalized(norm: Any, x: Tensor) -> Tensor:
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)


def _normalized_in_place(norm: Any, x: Tensor) -> Tensor:
    """Return a frozen norm of x, written into x by the kernel that writes elsewhere: the same bits."""
    if x.dtype != norm.running_mean.dtype or x.device.type != "cpu":
        return _normalized(norm, x)
    none = x.new_empty(0), x.new_empty(0)
    settings = norm.weight, norm.bias, norm.running_mean, norm.running_var, False, 0.0, norm.eps
    batch_norm_out(x, *settings, out=x, save_mean=none[0], save_invstd=none[1])
    return x


def _convolution(module: nn.Conv2d) -> Windowed | None:
    if module.padding_mode != "zeros":
        return None
    axes = _convolution_window(module, 0), _convolution_window(module, 1)
    if any(max(axis.before, axis.after) >= axis.extent for axis in axes):
        return None

    def run(x: Tensor, padding: tuple[int, int]) -> Tensor:
        return F.conv2d(x, module.weight, module.bias, module.stride, padding, module.dilation, module.groups)

    return Windowed(axes, run, module.out_channels, products=module.weight[0].numel())


def _convolution_window(module: nn.Conv2d, axis: int) -> Window:
    window = Window(module.kernel_size[axis], module.stride[axis], dilation=module.dilation[axis])
    if isinstance(module.padding, str):
        total = window.extent - 1 if module.padding == "same" else 0
        return window._replace(before=total // 2, after=total - total // 2)
    return window._replace(before=module.padding[axis], after=module.padding[axis])


def _max_pooling(module: nn.MaxPool2d) -> Windowed | None:
    if module.return_indices:
        return None
    kernel, stride, padding, dilation = (
        pair(each) for each in (module.kernel_size, module.stride, module.padding, module.dilation)
    )

    def run(x: Tensor, margin: tuple[int, int]) -> Tensor:
        return F.max_pool2d(x, kernel, stride, margin, dilation)

    windows = (
        Window(size, step, margin, margin, spread, module.ceil_mode, size // 2)
        for size, step, margin, spread in zip(kernel, stride, padding, dilation, strict=True)
    )
    # PyTorch also makes the maxima's places, of 8 bytes each.
    return Windowed((next(windows), next(windows)), run, fill=-inf, scratch=8)


def _average_pooling(module: nn.AvgPool2d) -> Windowed | None:
    kernel, stride, padding = (pair(each) for each in (module.kernel_size, module.stride, module.padding))
    if module.ceil_mode or (any(padding) and not module.count_include_pad):
        return None

    def run(x: Tensor, margin: tuple[int, int]) -> Tensor:
        return F.avg_pool2d(x, kernel, stride, margin, divisor_override=module.divisor_override)

    axes = tuple(
        Window(kernel[axis], stride[axis], padding[axis], padding[axis], largest_padding=kernel[axis] // 2)
        for axis in (0, 1)
    )
    return Windowed(axes, run)  # type: ignore[arg-type]
