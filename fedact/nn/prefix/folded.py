"""A copy of the frozen prefix that takes a fraction of its time: norms folded into convolutions, channels last in memory."""

import copy
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.fx import Node

from fedact.nn.graph import traced
from fedact.nn.install import has_statistics
from fedact.nn.prefix.chunks import ROUNDING
from fedact.nn.prefix.packed import PackedPrefix, packed_prefix
from fedact.nn.prefix.split import Split
from fedact.nn.restoration import restore
from fedact.torch_private import is_observed, version

Pair = tuple[str, str]
"""The names of a convolution and of the batch norm that alone reads its output."""


class Fold(NamedTuple):
    """A convolution and its norm in the model, and the one convolution in the copy that stands for both."""

    convolution: nn.Conv2d
    norm: nn.BatchNorm2d
    folded: nn.Conv2d


@dataclass(frozen=True, eq=False)
class FoldedPrefix:
    """``split.prefix``, up to rounding, from a plain copy of the model.

    twins: the other tensors of the prefix, each with its copy. packed: the copy in oneDNN's kernels, if there is one.
    """

    split: Split
    model: nn.Module
    folds: tuple[Fold, ...]
    twins: tuple[tuple[Tensor, Tensor], ...]
    packed: PackedPrefix | None = None
    _versions: list[tuple[int, int]] = field(default_factory=list, init=False, repr=False)

    @torch.no_grad()
    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the prefix's outputs for images."""
        code = self.split.parts.code() if self.packed is None else self.packed.code
        return code(self.model, [_channels_last(x)])  # type: ignore[no-any-return]

    @cached_property
    def _sources(self) -> list[Tensor]:
        """The model's tensors that this was made from."""
        folded = [tensor for fold in self.folds for module in fold[:2] for tensor in _tensors_of(module)]
        return [*folded, *(tensor for tensor, _ in self.twins)]

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the model's weights as they are now; nothing is done where no operation has changed them since."""
        versions = [(tensor.data_ptr(), version(tensor)) for tensor in self._sources]
        if versions == self._versions:
            return
        self._versions[:] = versions
        for convolution, norm, folded in self.folds:
            assert isinstance(norm.running_mean, Tensor)
            assert isinstance(norm.running_var, Tensor)
            assert isinstance(folded.bias, Tensor)
            scale = (norm.running_var + norm.eps).rsqrt_()
            scale = scale.mul_(norm.weight) if norm.affine else scale
            shift = -norm.running_mean if convolution.bias is None else convolution.bias - norm.running_mean
            torch.mul(convolution.weight, scale.view(-1, 1, 1, 1), out=folded.weight)
            torch.mul(shift, scale, out=folded.bias)
            if norm.affine:
                folded.bias.add_(norm.bias)
        for tensor, twin in self.twins:
            twin.copy_(tensor)
        if self.packed is not None:
            self.packed.refresh(self.model)


def folded_prefix(split: Split, x: Tensor, group: int = 0) -> FoldedPrefix | None:
    """Return the fast copy of a model's frozen prefix; None where hooks are on it, or where it computes something else.

    x: some images, on which its outputs are compared with the prefix's. group: how many its kernels are packed for, 0 for a
    copy whose weights change often: packing takes longer than one run.
    """
    called = [str(node.target) for node in split.parts.before.find_nodes(op="call_module")]
    modules = [module for name in called for module in split.model.get_submodule(name).modules()]
    if any(is_observed(module) or module.training for module in (split.model, *modules)):
        return None
    # The code of any model may run here, on other strides than it is used to.
    try:
        made = _made(split, tuple(called))
        expected, found = split.prefix(x), made(x)
    except Exception:
        return None
    if not _alike(found, expected):
        return None
    if not group:
        return made
    with suppress(Exception), torch.no_grad():
        faster = replace(made, packed=packed_prefix(made.model, split.parts.before, _channels_last(x), group))
        if _alike(faster(x), expected):
            faster.refresh()
            return faster
    return made


def _alike(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> bool:
    """Tell whether outputs are the same up to rounding."""
    return all(
        value.shape == other.shape and value.dtype == other.dtype and bool((value - other).norm() <= ROUNDING * other.norm())
        for value, other in zip(found, expected, strict=True)
    )


def _tensors_of(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(recurse=False), *module.buffers(recurse=False)]


def _made(split: Split, called: tuple[str, ...]) -> FoldedPrefix:
    """Return the copy; called: the names of the modules that the prefix calls."""
    model, source = restore(copy.deepcopy(split.model)).eval().requires_grad_(False), split.model
    inside = tuple(f"{name}." for name in called)
    folds = []
    for convolution, norm in _pairs(model, split):
        if f"{convolution}.".startswith(inside) and f"{norm}.".startswith(inside):
            one, other = model.get_submodule(convolution), model.get_submodule(norm)
            assert isinstance(one, nn.Conv2d)
            one.bias = nn.Parameter(one.weight.new_empty(len(one.weight)), requires_grad=False)
            other.__class__ = nn.Identity
            other._parameters.clear()
            other._buffers.clear()
            folds.append(Fold(source.get_submodule(convolution), source.get_submodule(norm), one))  # type: ignore[arg-type]
    read = {str(node.target).rpartition(".")[0] for node in split.parts.before.find_nodes(op="get_attr")}
    for name, module in model.named_modules():
        if not f"{name}.".startswith(inside) and name not in read:
            module._parameters.clear()
            module._buffers.clear()
    for parameter in model.parameters():
        parameter.data = _channels_last(parameter.data)
    own = {id(tensor) for fold in folds for tensor in fold.folded.parameters()}
    twins = [
        (attribute, twin)
        for name, twin in (*model.named_parameters(), *model.named_buffers())
        if id(twin) not in own and isinstance(attribute := _attribute(source, name), Tensor)
    ]
    made = FoldedPrefix(split, model, tuple(folds), tuple(twins))
    made.refresh()
    return made


def _pairs(model: nn.Module, split: Split) -> list[Pair]:
    """Return the pairs of a plain model: each is called once, and the convolution's output is read by the norm alone."""
    graph = traced(model)
    if graph is None:
        return []
    calls = [node for node in graph.nodes if node.op == "call_module"]
    count = Counter(str(node.target) for node in calls)
    attributes = [*graph.find_nodes(op="get_attr"), *split.parts.before.find_nodes(op="get_attr")]
    read = {str(node.target).rpartition(".")[0] for node in attributes}

    def alone(node: Node, kind: type[nn.Module]) -> bool:
        name = str(node.target)
        return node.op == "call_module" and type(model.get_submodule(name)) is kind and count[name] == 1 and name not in read

    pairs = [(node, next(iter(node.users))) for node in calls if len(node.users) == 1 and alone(node, nn.Conv2d)]
    norms = [(node, user) for node, user in pairs if alone(user, nn.BatchNorm2d)]
    return [
        (str(node.target), str(user.target))
        for node, user in norms
        if has_statistics(model.get_submodule(str(user.target))) and len(user.args) == 1
    ]


def _attribute(model: nn.Module, name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(model.get_submodule(module), attribute)


def _channels_last(x: Tensor) -> Tensor:
    """Return x in the order in which a CPU's kernels are fastest; others are left as they are."""
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 and x.device.type == "cpu" else x
