"""The floor: the largest input and output of any one layer, which running a network layer by layer, each whole, needs."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fedact.config.errors import ConfigError
from fedact.measure.ledger import address, tensors_in
from fedact.measure.step import shallow_copy
from fedact.nn.graph import named_modules
from fedact.nn.layers import DROPOUTS, NORMS
from fedact.nn.layers.base import ChannelNorm
from fedact.nn.restoration import uninstall
from fedact.nn.surgery import trained_layers
from fedact.torch_private import blind

ELEMENTWISE = {
    f"torch.nn.modules.{file}" for file in ("activation", "batchnorm", "dropout", "instancenorm", "normalization")
}
"""Where torch defines the layers that can write their output into their input's place."""
PIECEWISE_LINEAR = (
    nn.ReLU, nn.Hardtanh, nn.Hardsigmoid, nn.LeakyReLU, nn.Threshold, nn.Softshrink, nn.Hardshrink, *NORMS, *DROPOUTS,
)  # fmt: skip
"""Of these, those whose backward pass needs no more of their input than which piece a value is on."""


@dataclass(frozen=True)
class Floor:
    """The layer whose input and output are largest, and their bytes of one image.

    bytes: of both; of the larger one where the layer can write its output into its input's place. input_bytes: the image's
    own do not count, as in a peak.
    """

    bytes: int
    layer: str
    input_bytes: int
    output_bytes: int


def floor(model: nn.Module, example: Tensor | tuple[Tensor, Tensor], layers: int | None = None) -> Floor:
    """Return the bytes of one image that a network which runs layer by layer, each whole, cannot go below, and where.

    example: a batch of images, or images and labels; the first image is run. layers: count the backward pass of so many last
    convolutions and the head too; None: inference. There a layer's input and the gradient of its output are the same pair
    again, but an activation that is not piecewise linear needs both where forward it works in place.

    A layer is a module that calls no other. What is done outside of such modules (additions, concatenations, functions) does
    not count. The model is left as it is. A peak is said as a multiple of the floor; only running layers in parts, streams
    or tiles, goes below it. Raises ConfigError for layers that the model does not have, or where it cannot run on the image.

    >>> import fedact, torch
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 16, 3))
    >>> fedact.floor(model, torch.rand(1, 3, 8, 8))  # 4 bytes x (8 x 6 x 6 elements in, 16 x 4 x 4 out)
    Floor(bytes=2176, layer='2', input_bytes=1152, output_bytes=1024)
    """
    x = next(iter(example), None) if isinstance(example, tuple | list) else example
    if not isinstance(x, Tensor) or not x.dim() or not len(x):
        raise ConfigError("an example is a batch of images, or a pair of images and labels")
    plain = uninstall(shallow_copy(model)).eval().requires_grad_(False)
    for name in [] if layers is None else trained_layers(plain, layers):
        plain.get_submodule(name).requires_grad_()
    with torch.random.fork_rng(devices=[]), torch.set_grad_enabled(layers is not None):
        return largest_layer(plain, x)


def largest_layer(model: nn.Module, x: Tensor) -> Floor:
    """Return the floor of a model as it is, on the first image of x; backward where its parameters require gradients."""
    image = x[:1].clone(memory_format=torch.preserve_format)
    running: list[bool] = []
    found = [Floor(0, "", 0, 0)]

    def enter(*_: Any) -> None:
        running[:] = [False] * len(running) + [True]

    def leave(module: nn.Module, args: Any, options: Any, output: Any, name: str) -> None:
        if running.pop():
            inputs = [tensor for tensor in tensors_in((args, options)) if address(tensor) != address(image)]
            found.append(_pair(name, inputs, tensors_in(output), _is_in_place(module, inputs)))

    handles = []
    for name, module in named_modules(model):
        handles.append(module.register_forward_pre_hook(blind(enter)))
        handles.append(module.register_forward_hook(blind(partial(leave, name=name)), with_kwargs=True))
    try:
        model(image)
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConfigError(f"the model cannot be run on the example's first image: {reason}") from None
    finally:
        for handle in handles:
            handle.remove()
    return max(found, key=lambda layer: layer.bytes)


def _pair(name: str, inputs: list[Tensor], outputs: list[Tensor], in_place: bool) -> Floor:
    read, written = _bytes(inputs), _bytes(outputs)
    return Floor(max(read, written) if in_place else _bytes([*inputs, *outputs]), name, read, written)


def _bytes(tensors: list[Tensor]) -> int:
    """Return the bytes of the tensors, those that share a storage once, and never more than it has."""
    sizes: dict[int, int] = {}
    for tensor in tensors:
        size = min(tensor.nbytes, tensor.untyped_storage().nbytes())
        sizes[address(tensor)] = max(size, sizes.get(address(tensor), 0))
    return sum(sizes.values())


def _is_in_place(module: nn.Module, inputs: list[Tensor]) -> bool:
    """Tell whether a layer can write where it reads, and its backward pass as well, where a gradient passes it."""
    files = {base.__module__ for base in type(module).__mro__}
    elementwise = isinstance(module, ChannelNorm) or (not module._modules and not files.isdisjoint(ELEMENTWISE))
    passed = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)
    return elementwise and (isinstance(module, PIECEWISE_LINEAR) or not passed)
