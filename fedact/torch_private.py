"""Every name of torch that fedact uses and torch does not document; where one moves, this is the only file to follow it.

The kernels are those that autograd itself runs for a layer: called alone, they need no more than what a layer saved.
"""

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules import module as _of_all
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.utils._python_dispatch import TorchDispatchMode as _TorchDispatchMode
from torch.utils._python_dispatch import _disable_current_modes

COMPILER = ("torch._dynamo", "torch._dynamo.utils")

Hook = TypeVar("Hook", bound=Callable[..., Any])
Kernel = Callable[..., Tensor]
Kernels = Callable[..., tuple[Tensor, ...]]

NormWithStatistics = _NormBase
InstanceNorm = _InstanceNorm
"""What batch norms and instance norms have in common, and what instance norms have."""

convolution_backward: Kernels = torch.ops.aten.convolution_backward
embedding_bag: Kernels = torch.ops.aten._embedding_bag
native_batch_norm_into: Callable[..., Any] = torch.native_batch_norm
native_layer_norm: Kernels = torch.ops.aten.native_layer_norm
native_layer_norm_backward: Kernels = torch.ops.aten.native_layer_norm_backward
native_group_norm: Kernels = torch.ops.aten.native_group_norm
native_group_norm_backward: Kernels = torch.ops.aten.native_group_norm_backward
max_pool2d_with_indices: Callable[..., tuple[Tensor, Tensor]] = torch.ops.aten.max_pool2d_with_indices
max_pool2d_with_indices_backward: Kernel = torch.ops.aten.max_pool2d_with_indices_backward
avg_pool2d_backward: Kernel = torch.ops.aten.avg_pool2d_backward
adaptive_avg_pool2d_backward: Kernel = torch.ops.aten._adaptive_avg_pool2d_backward
adaptive_max_pool2d_backward: Kernel = torch.ops.aten.adaptive_max_pool2d_backward
upsample_bilinear2d_backward: Kernel = torch.ops.aten.upsample_bilinear2d_backward
batch_norm_out: Any = torch.ops.aten.native_batch_norm.out
"""Batch norm that writes its output where it is told, into its input too."""
threshold_backward: Kernel = torch.ops.aten.threshold_backward
hardtanh_backward: Kernel = torch.ops.aten.hardtanh_backward
threshold_backward_into: Kernel = torch.ops.aten.threshold_backward.grad_input
hardtanh_backward_into: Kernel = torch.ops.aten.hardtanh_backward.grad_input
hardswish_backward: Kernel = torch.ops.aten.hardswish_backward
silu_backward: Kernel = torch.ops.aten.silu_backward
gelu_backward: Kernel = torch.ops.aten.gelu_backward
gelu_in_place: Kernel = torch.ops.aten.gelu_

eigh: Any = torch.ops.aten._linalg_eigh
qr: Any = torch.ops.aten.linalg_qr
svd: Any = torch.ops.aten._linalg_svd
"""Decompositions, as a dispatch mode sees them."""

convolution_pointwise: Any = getattr(torch.ops.mkldnn, "_convolution_pointwise", None)
"""oneDNN's convolution with what follows it, of a packed weight; None where torch was built without oneDNN."""

lift_fresh: Any = torch.ops.aten.lift_fresh.default
"""What a dispatch mode sees of a tensor made from a number, a list or an array."""
PRODUCTS: dict[Any, int] = {
    torch.ops.aten.convolution.default: 0,
    torch.ops.aten.mm.default: 0,
    torch.ops.aten.addmm.default: 1,
}
"""Every convolution, of whatever dimensions and padding, and a linear layer's product, as a dispatch mode sees them, with
the place of the input among the arguments."""
ones_like: Any = torch.ops.aten.ones_like.default
"""What makes the gradient that a backward pass begins with."""
zeros_like: Any = torch.ops.aten.zeros_like.default
"""What makes a gradient that others are added to."""


def flop_formulas() -> dict[Any, Callable[..., int]]:
    """Return PyTorch's formulas of floating-point operations, by operator."""
    # Loads Triton, which nothing else here needs.
    from torch.utils.flop_counter import flop_registry

    # It knows no operations in place.
    return flop_registry | {torch.ops.aten.addmm_: flop_registry[torch.ops.aten.addmm]}


def in_backward_pass() -> bool:
    """Return whether the autograd engine is at work: in a backward operation, or in what one recomputes."""
    return torch._C._current_graph_task_id() != -1


def in_transform() -> bool:
    """Return whether a transform of ``torch.func`` is at work, or forward-mode differentiation."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def saved_tensor_hooks() -> Any:
    """Return the hooks that pack what autograd saves here, None where there are none."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True)


def is_jit_tracing() -> bool:
    """Return whether ``torch.jit.trace`` is at work."""
    return torch._C._is_tracing()


def storage_address(storage: torch.UntypedStorage) -> int:
    """Return the C++ address of a storage, which no other has while it lives; two Python objects may share one."""
    return int(storage._cdata)


def sparse_parts(tensor: Tensor) -> tuple[Tensor, ...]:
    """Return the strided tensors that a sparse one is made of; none of a layout without any, as oneDNN's."""
    if tensor.layout is torch.sparse_coo:
        return tensor._indices(), tensor._values()
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return tensor.crow_indices(), tensor.col_indices(), tensor.values()
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return tensor.ccol_indices(), tensor.row_indices(), tensor.values()
    return ()


def raw_bytes(tensor: Tensor) -> bytes:
    """Return a contiguous CPU tensor's memory, by no operation that a dispatch mode would see."""
    return ctypes.string_at(tensor.data_ptr(), tensor.nbytes)


def packed_weight(convolution: nn.Conv2d, shape: list[int]) -> Tensor:
    """Return a convolution's weight in the order that oneDNN prefers for an input of this shape.

    Raises what torch does where it was built without oneDNN.
    """
    pack: Any = torch._C._nn.mkldnn_reorder_conv2d_weight
    weight = convolution.weight.detach().contiguous().to_mkldnn()
    packed: Tensor = pack(weight, convolution.padding, convolution.stride, convolution.dilation, convolution.groups, shape)
    return packed


def version(tensor: Tensor) -> int:
    """Return how often a tensor, or one that shares its memory, was changed in place."""
    return tensor._version


def blind(hook: Hook) -> Hook:
    """Mark a forward hook that keeps no tensor it is given and changes none, and return it."""
    hook.fedact_is_blind = True  # type: ignore[attr-defined]
    return hook


def has_gradient_hooks(tensor: Tensor) -> bool:
    """Tell whether a hook of a tensor is given its gradient."""
    return bool(tensor._backward_hooks)


def is_blind(hook: Hook) -> bool:
    """Tell whether a hook was marked as ``blind``."""
    return getattr(hook, "fedact_is_blind", False)


def post_accumulate_hooks(parameter: Tensor) -> list[Callable[[Tensor], None]]:
    """Return the hooks that run once a gradient was added to a parameter's."""
    return [*(parameter._post_accumulate_grad_hooks or {}).values()]


def will_accumulate(node: Any) -> bool:
    """Tell whether the running backward pass adds to the gradient of a leaf, whose node of the graph this is."""
    try:
        return torch._C._will_engine_execute_node(node)
    except RuntimeError:
        # ``torch.autograd.grad`` returns the gradient.
        return False


def is_observed(module: nn.Module) -> bool:
    """Tell whether a hook, of the module or of all modules, may get hold of tensors, or of gradients, of its call."""
    of_all = (_of_all._global_forward_hooks, _of_all._global_forward_pre_hooks)
    gradients = (_of_all._global_backward_hooks, _of_all._global_backward_pre_hooks)
    own = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    if not any((*of_all, *gradients, *own)):
        return False
    hooks = (hook for registered in (*of_all, *gradients, *own) for hook in registered.values())
    return not all(map(is_blind, hooks))


def without_dispatch_modes() -> AbstractContextManager[Any]:
    """Return a context in which no dispatch mode sees an operation."""
    return _disable_current_modes()


def clear_hooks(module: nn.Module) -> None:
    """Take off a module's forward hooks and forward pre-hooks."""
    module._forward_hooks.clear()
    module._forward_pre_hooks.clear()


class TorchDispatchMode(_TorchDispatchMode):  # type: ignore[no-untyped-call]
    """torch's mode; where torch's compiler is not loaded, its first operation does not load it."""

    def __enter__(self) -> Self:
        dispatch, disabled = type(self).__torch_dispatch__.__wrapped__, "__dynamo_disable"  # type: ignore[attr-defined]
        if COMPILER[0] in sys.modules:
            # torch wraps it anew, so that the compiler leaves it alone.
            vars(dispatch).pop(disabled, None)
        else:
            setattr(dispatch, disabled, dispatch)
        return super().__enter__()  # type: ignore[no-any-return, no-untyped-call]


@contextmanager
def compiler_on_demand() -> Iterator[None]:
    """Within this context, a function imported from torch's compiler loads it with its first call, not at once.

    torchvision imports one, which asks whether a call is being compiled; torch's compiler takes longer to load than torch.
    """
    if any(name in sys.modules for name in COMPILER):
        yield
        return

    def on_demand(name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: getattr(import_module(COMPILER[-1]), name)(*args, **kwargs)

    package, functions = map(ModuleType, COMPILER)
    package.__path__ = []
    functions.__getattr__ = on_demand  # type: ignore[method-assign]
    sys.modules.update(zip(COMPILER, (package, functions), strict=True))
    try:
        yield
    finally:
        for name in COMPILER:
            sys.modules.pop(name, None)
        vars(torch).pop("_dynamo", None)
