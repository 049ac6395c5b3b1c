"""A first look at a method of one's own, before anything trains with it: on small tensors, in some milliseconds.

The laws (``python -m fedact.laws``) look closely; this finds what would make a step fail, or its gradient wrong unnoticed.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fedact.compression.matrix_product import MatrixProduct
from fedact.compression.method import Compressed, Method, State
from fedact.compression.operations import Convolution, Operation
from fedact.config.errors import ConfigError

SHAPES = ((2, 3, 5, 4), (3, 6), (2, 4, 5))
"""Pictures, rows, and tokens or series."""


def check_conduct(method: Method, name: str) -> Method:
    """Return a method that stores and returns what it says, on small tensors; raises ConfigError for another.

    name: what errors call it.
    """
    # What a layer runs a method in: autograd is off, whatever the input needs.
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for shape in SHAPES:
            x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).relu().requires_grad_()
            try:
                fault = next(faults(method.for_dimensions(len(shape)), x), None)
            except (Exception, SystemExit) as error:
                fault = f"fails on a tensor of {shape}: {' '.join(f'{type(error).__name__}: {error}'.split())}"
            if fault:
                raise ConfigError(f"{name} {fault} (python -m fedact.laws {name} says more)")
    return method


def faults(method: Method, x: Tensor) -> Iterator[str]:
    """Yield what is wrong with a method on a tensor."""
    before, start = x.detach().clone(), method.start(0)
    compressed = method.compress(x, start)
    yield from compression_faults(compressed)
    if not torch.equal(x, before):
        yield "changes its input in place"
    tensors, metadata, state = compressed
    if any(tensor.grad_fn is not None for tensor in (*tensors, *state.tensors)):
        yield "stores tensors that hang on autograd's graph: detach them"
    if has_tensor(metadata):
        yield "hides a tensor in its metadata: tensors go among the tensors"
    for what, stored, said in (
        ("", tensors, (method.predicted_bytes(x), method.predicted_bytes(x.shape))),
        ("state ", state.tensors, (method.predicted_state_bytes(x), method.predicted_state_bytes(x.shape))),
    ):
        yield from byte_faults(what, stored, said, method.fixed_size)
    kept = compressed if method.traits.reads_state else Compressed(tensors, metadata, State((), state.metadata))
    intact = [tensor.clone() for tensor in tensors]
    rebuilt = method.reconstruct(kept)
    if not all(map(torch.equal, tensors, intact)):
        yield "changes what is stored as it reconstructs, which may be asked for again"
    if not isinstance(rebuilt, Tensor) or rebuilt.shape != x.shape or rebuilt.dtype != x.dtype:
        yield f"reconstructs {described(rebuilt)} from {described(x)}"
    if method.traits.keeps_input and not torch.equal(rebuilt, x):
        yield "says that it keeps the input (traits.keeps_input), and reconstructs another"
    yield from gradient_faults(method, kept, x)


def compression_faults(compressed: Any) -> Iterator[str]:
    """Yield what is wrong with what ``compress`` returned, as a value."""
    if not isinstance(compressed, Compressed):
        yield f"returns {described(compressed)} from compress: it is a Compressed((tensor, ...), metadata)"
    elif not isinstance(compressed.state, State):
        yield f"returns {described(compressed.state)} as its state: it is a State((tensor, ...))"
    else:
        both = (compressed.tensors, compressed.state.tensors)
        if not all(isinstance(each, tuple) and all(isinstance(one, Tensor) for one in each) for each in both):
            yield "stores something else than a tuple of tensors"


def byte_faults(what: str, tensors: tuple[Tensor, ...], said: tuple[Any, Any], fixed: bool) -> Iterator[str]:
    """Yield what is wrong with stored bytes; said: what was predicted for the tensor, and at most for its shape."""
    pinned = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors if each.numel()}
    shown, stored = sum(each.nbytes for each in tensors), sum(pinned.values())
    if not all(type(size) is int for size in said):
        yield f"predicts {said} bytes of {what or 'tensors'}: it is a whole number"
    elif stored != shown:
        yield f"stores views of {stored} bytes as {what}tensors of {shown}: store copies"
    elif stored != said[0]:
        yield f"stores {stored} {what}bytes, and predicts {said[0]}"
    elif stored > said[1] or (fixed and not what and stored != said[1]):
        yield f"stores {stored} {what}bytes, and predicts {said[1]} for the shape"


def gradient_faults(method: Method, compressed: Compressed, x: Tensor) -> Iterator[str]:
    """Yield what is wrong with the gradients that a method makes of what it stored."""
    if x.dim() == 3:
        return
    layer = nn.Conv2d(x.shape[1], 2, 3) if x.dim() == 4 else nn.Linear(x.shape[1], 2)
    operation: Operation = Convolution.of(layer) if isinstance(layer, nn.Conv2d) else MatrixProduct()
    weight = layer.weight
    gradient = torch.ones_like(operation.forward(x, weight, None))
    of_weight = method.weight_gradient(compressed, gradient, weight, operation)
    of_input = method.input_gradient(x.shape, gradient, weight, operation)
    for name, found, like in (("weight", of_weight, weight), ("input", of_input, x)):
        if not isinstance(found, Tensor) or found.shape != like.shape or found.dtype != like.dtype:
            yield f"makes {described(found)} as the gradient of {described(like)} ({name}_gradient)"


def has_tensor(value: Any) -> bool:
    """Tell whether a tensor lies in containers."""
    if isinstance(value, Mapping):
        value = tuple(value.values())
    return isinstance(value, Tensor) or (isinstance(value, tuple | list | set) and any(map(has_tensor, value)))


def described(value: Any) -> str:
    """Return a tensor's type and shape, or what else a value is."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    return "nothing" if value is None else f"something of type {type(value).__name__}"
