"""What fedact uses of torch beyond what torch documents: each name is there, and only one file knows it."""

import ast
import subprocess
import sys
from pathlib import Path
from pkgutil import resolve_name

import pytest
import torch
from torch import nn
from torch.nn.modules import module as of_all

import fedact
from fedact import torch_private

KERNELS = (
    "convolution_backward", "native_layer_norm", "native_layer_norm_backward", "native_group_norm",
    "native_group_norm_backward", "max_pool2d_with_indices", "max_pool2d_with_indices_backward",
    "avg_pool2d_backward", "_adaptive_avg_pool2d_backward", "adaptive_max_pool2d_backward", "threshold_backward",
    "hardtanh_backward", "hardswish_backward", "silu_backward", "gelu_backward", "_linalg_eigh", "linalg_qr", "_linalg_svd",
    "lift_fresh", "ones_like", "zeros_like", "addmm_", "upsample_bilinear2d_backward",
)  # fmt: skip
NAMES = (
    *(f"torch.ops.aten.{name}" for name in KERNELS),
    "torch._C._current_graph_task_id",
    "torch._C._will_engine_execute_node",
    "torch.utils._python_dispatch.TorchDispatchMode",
    "torch.utils.flop_counter.flop_registry",
    "torch.nn.modules.batchnorm._NormBase",
    "torch.nn.modules.instancenorm._InstanceNorm",
)


@pytest.mark.parametrize("name", NAMES)
def test_torch_has_the_name(name):
    try:
        resolve_name(name)
    except (AttributeError, ImportError):
        pytest.fail(f"torch {torch.__version__} moved {name}: fedact/torch_private.py is the file to follow it in")


def test_attributes_say_what_they_did():
    x = torch.zeros(3)
    before, other = torch_private.version(x), torch.zeros(3)
    x.add_(1)
    assert torch_private.version(x) == before + 1
    address = torch_private.storage_address(x.untyped_storage())
    assert address == torch_private.storage_address(x[1:].untyped_storage())
    assert address != torch_private.storage_address(other.untyped_storage())


def test_a_backward_pass_knows_that_it_is_one():
    seen = []
    x = torch.zeros(3, requires_grad=True)
    x.register_hook(lambda gradient: seen.append(torch_private.in_backward_pass()))
    x.sum().backward()
    assert seen == [True]
    assert not torch_private.in_backward_pass()


def test_hooks_are_taken_off():
    module, seen = nn.ReLU(), []
    module.register_forward_hook(lambda *_: seen.append("after"))
    module.register_forward_pre_hook(lambda *_: seen.append("before"))
    torch_private.clear_hooks(module)
    module(torch.zeros(1))
    assert seen == []


def test_hooks_are_seen_but_for_those_that_keep_no_tensor():
    module, nothing = nn.ReLU(), lambda *_: None
    assert not torch_private.is_observed(module)
    module.register_forward_hook(torch_private.blind(lambda *_: None))
    assert not torch_private.is_observed(module)
    hooks = (
        module.register_forward_hook, module.register_forward_pre_hook, module.register_full_backward_hook,
        module.register_full_backward_pre_hook, of_all.register_module_forward_hook, of_all.register_module_forward_pre_hook,
        of_all.register_module_full_backward_hook, of_all.register_module_full_backward_pre_hook,
    )  # fmt: skip
    for register in hooks:
        handle = register(nothing)
        assert torch_private.is_observed(module)
        handle.remove()
    assert not torch_private.is_observed(module)


def private_names(file: Path) -> list[str]:
    """Return the names in a file that look like torch's own: ``torch.ops``, ``torch._x``, ``torch.a._b``, ``x._cdata``."""
    tree, found = ast.parse(file.read_text(encoding="utf-8")), []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch"):
            found += [f"{node.module}.{each.name}" for each in node.names]
        if isinstance(node, ast.Attribute):
            found.append(ast.unparse(node))
    attributes = ("_cdata", "_version", "_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    private = [name for name in found if name.startswith("torch.") and ("._" in name or name.startswith("torch.ops"))]
    of_objects = [name for name in found if name.rpartition(".")[2] in attributes]
    return [*(name for name in private if "__" not in name), *of_objects]


def test_no_other_file_knows_them():
    root = Path(fedact.__file__).parent
    files = [file for file in root.rglob("*.py") if file.name != "torch_private.py"]
    assert {str(file.relative_to(root)): names for file in files if (names := private_names(file))} == {}
    assert len(private_names(root / "torch_private.py")) > len(KERNELS)


LIGHT = """
import sys
import fedact
from fedact.vision import models, ops
from fedact.models.sgd import Sgd
import torch
model = models.get_model("mobilenet_v2", num_classes=2, width_mult=0.1)
model.eval()(torch.rand(1, 3, 32, 32)).sum().backward()
Sgd(list(model.parameters()), 0.1, 0.9).step(1.0)
with fedact.measure_memory(model) as memory:
    model(torch.rand(1, 3, 32, 32)).sum().backward()
assert memory.peak_bytes
compiler = [name for name in sys.modules if name.startswith("torch._dynamo")]
assert not compiler, compiler
boxes = ops.roi_align(torch.ones(1, 1, 4, 4), [torch.tensor([[0.0, 0.0, 2.0, 2.0]])], 2)
assert boxes.eq(1).all()
import torch._dynamo.utils
assert torch._dynamo.utils.is_compile_supported is not None
"""


def test_torchs_compiler_is_not_loaded_but_there():
    ran = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
