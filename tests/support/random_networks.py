"""Random small networks, steps and hooks; what a method makes of their gradients, beside plain autograd.

The oracle of a method with loss is plain autograd on what the method reconstructs of each saved input.
"""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fedact
from fedact.compression import make_method
from fedact.compression.matrix_product import channels_last
from fedact.nn.channels import as_methods_see, layers_over_last
from fedact.nn.layers import SMOOTH
from fedact.nn.surgery import body_layers, smooth_activations, trained_layers

SIZE = 6
EXACT = (
    "exact", "exact:derive=1", "exact:derive=2", "exact:derive=3", "checkpoint", "checkpoint:children=2",
    "hosvd:variance=1.0", "transform:bits=16,derive=2",
)  # fmt: skip
LOSSY = (
    "hosvd:variance=0.8",
    "hosvd:variance=0.9,bits=8",
    "svd:variance=0.7",
    "tucker:variance=0.8",
    "transform:bits=2,derive=0",
)
TOLERANCE = {"transform:bits=16,derive=2": 3e-2, "hosvd:variance=1.0": 1e-6}
ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.Hardswish, nn.SiLU, nn.Hardsigmoid, nn.LeakyReLU, nn.ELU)
STEPS = ("once", "two passes before one backward pass", "backward twice", "accumulated", "a pass without gradients")


class RandomNet(nn.Module):
    """Parts in a row, some of which read earlier values, change theirs in place, or run on some steps alone."""

    WIDTHS = 2, 4, 4, 8

    def __init__(self, random: np.random.Generator) -> None:
        super().__init__()
        self.random, self.parts, self.calls = random, nn.ModuleList(), []
        self.steps, self.kept = 0, 0
        channels = self.conv(3)
        self.widths: list[int] = []
        for _ in range(random.integers(4, 10)):
            channels = self.add(channels)
        channels = self.conv(channels)
        self.head = nn.Linear(channels, 3)

    def call(self, kind: str, *what: Any) -> None:
        self.calls.append((kind, what))

    def part(self, module: nn.Module) -> None:
        self.parts.append(module)
        self.call("part", len(self.parts) - 1)

    def pick(self, *options: Any) -> Any:
        return options[self.random.integers(len(options))]

    def make_conv(self, inputs: int, outputs: int) -> nn.Module:
        kernel, dilation = self.pick(1, 1, 3, 5, 7), self.pick(1, 1, 2)
        groups = inputs if inputs == outputs and self.random.random() < 0.2 else self.pick(1, 1, 2) if inputs % 2 == 0 else 1
        bias = bool(self.random.random() < 0.7)
        return nn.Conv2d(
            inputs,
            outputs,
            kernel,
            padding="same",
            dilation=dilation,
            groups=groups if outputs % groups == 0 else 1,
            bias=bias,
        )

    def make_norm(self, width: int) -> nn.Module:
        return nn.BatchNorm2d(width)

    def make_pool(self) -> nn.Module:
        return self.pick(nn.MaxPool2d(3, 1, 1), nn.AvgPool2d(3, 1, 1))

    def conv(self, inputs: int) -> int:
        outputs = self.pick(*self.WIDTHS)
        self.part(self.make_conv(inputs, outputs))
        return outputs

    def add(self, width: int) -> int:
        """Add one thing behind a value of this many channels; return how many it leaves."""
        kind = self.pick(
            "conv", "conv", "conv", "norm", "norm", "activation", "activation", "activation", "off", "in place", "view",
            "keep",
            "sum", "gate", "branches", "again", "pool", "sometimes",
        )  # fmt: skip
        if kind == "conv":
            return self.conv(width)
        if kind == "norm":
            self.part(self.make_norm(width))
        elif kind == "activation":
            module = self.pick(*ACTIVATIONS)
            self.part(module(inplace=bool(self.random.random() < 0.5)))
        elif kind == "off":
            self.part(self.pick(nn.Dropout(0.5), nn.Dropout2d(0.5), nn.Identity(), nn.GELU(), nn.Sigmoid()))
        elif kind == "pool":
            self.part(self.make_pool())
        elif kind == "branches":
            self.parts.extend([self.make_conv(width, width), self.make_conv(width, width)])
            self.call(kind, len(self.parts) - 2, len(self.parts) - 1)
        elif kind == "gate":
            self.parts.append(self.make_conv(width, width))
            self.call(kind, len(self.parts) - 1)
        elif kind == "again":
            same = [
                n for n, m in enumerate(self.parts) if getattr(m, "in_channels", 0) == getattr(m, "out_channels", 1) == width
            ]
            if same:
                self.call("part", self.pick(*same))
        elif kind == "keep":
            self.call(kind, width)
            self.widths.append(width)
        elif kind == "sum":
            same = [n for n, w in enumerate(self.widths) if w == width]
            if same:
                self.call(self.pick("sum", "sum in place"), self.pick(*same))
        elif kind == "in place":
            self.call(self.pick("mul_", "clamp_", "slice", "relu_", "quietly"))
        else:
            self.call(self.pick("transpose", "cat", "flat") if kind == "view" else self.pick("skip", "scale"))
        return width

    def forward(self, x: Tensor) -> Tensor:
        kept: list[Tensor] = []
        self.steps += 1
        for kind, what in self.calls:
            x = self.run(kind, what, x, kept)
        return self.head(self.mean(x))

    def mean(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))

    def turned(self, x: Tensor) -> Tensor:
        return x.transpose(2, 3)

    def run(self, kind: str, what: tuple[Any, ...], x: Tensor, kept: list[Tensor]) -> Tensor:
        if kind == "part":
            return self.parts[what[0]](x)
        if kind == "keep":
            kept.append(x)
        elif kind == "sum":
            return x + kept[what[0]]
        elif kind == "sum in place":
            x += kept[what[0]]
        elif kind == "branches":
            return self.parts[what[0]](x) + 0.5 * self.parts[what[1]](x)
        elif kind == "gate":
            return x * torch.sigmoid(self.parts[what[0]](x))
        elif kind == "mul_":
            x.mul_(1.5)
        elif kind == "clamp_":
            x.clamp_(-0.5, 0.5)
        elif kind == "slice":
            x[:, ::2].mul_(0.5)
        elif kind == "relu_":
            F.relu(x, inplace=True)
        elif kind == "quietly":
            with torch.no_grad():
                x.mul_(0.9)
        elif kind == "transpose":
            return self.turned(x)
        elif kind == "cat":
            return torch.cat(x.chunk(2, 1)[::-1], 1)
        elif kind == "flat":
            return x.flatten(2).mul(1.1).view(*x.shape)
        elif kind == "skip" and self.steps % 2:
            return x.relu()
        elif kind == "scale" and self.steps % 2:
            x = x * 1.2
        return x


class RandomSeriesNet(RandomNet):
    """The same of series (batch, channels, steps)."""

    def make_conv(self, inputs: int, outputs: int) -> nn.Module:
        kernel, dilation, mode = (
            self.pick(1, 3, 4, 5),
            self.pick(1, 1, 2),
            self.pick("zeros", "zeros", "reflect", "circular"),
        )
        groups = self.pick(1, 1, 2) if inputs % 2 == outputs % 2 == 0 else 1
        settings = {"dilation": dilation, "groups": groups, "padding_mode": mode, "bias": bool(self.random.random() < 0.7)}
        return nn.Conv1d(inputs, outputs, kernel, padding="same", **settings)

    def make_norm(self, width: int) -> nn.Module:
        return self.pick(nn.BatchNorm1d(width), nn.GroupNorm(2, width), nn.InstanceNorm1d(width, affine=True))

    def make_pool(self) -> nn.Module:
        return self.pick(nn.MaxPool1d(3, 1, 1), nn.AvgPool1d(3, 1, 1), nn.AdaptiveAvgPool1d(7), nn.ReplicationPad1d(1))

    def mean(self, x: Tensor) -> Tensor:
        return x.mean(2)

    def turned(self, x: Tensor) -> Tensor:
        return x.flip(2)


class RandomTokenNet(RandomSeriesNet):
    """The same of tokens (batch, tokens, channels)."""

    # Not 2: a layer norm would make them plus and minus 1, which lie between codes of few bits.
    WIDTHS = 4, 4, 6, 8

    def make_conv(self, inputs: int, outputs: int) -> nn.Module:
        return nn.Linear(inputs, outputs, bias=bool(self.random.random() < 0.7))

    def make_norm(self, width: int) -> nn.Module:
        return self.pick(nn.LayerNorm(width), nn.LayerNorm(width, elementwise_affine=False), nn.RMSNorm(width))

    def make_pool(self) -> nn.Module:
        return self.pick(nn.Mish(), nn.Softplus(), nn.PReLU(init=0.3), nn.Softmax(-1))

    def mean(self, x: Tensor) -> Tensor:
        return x.mean(1)

    def turned(self, x: Tensor) -> Tensor:
        return x.flip(1)


SHAPES = {RandomNet: (2, 3, SIZE, SIZE), RandomSeriesNet: (2, 3, 2 * SIZE), RandomTokenNet: (2, SIZE, 3)}


def network(seed: int, kind: type[RandomNet] = RandomNet) -> nn.Module:
    random = np.random.default_rng(seed)
    torch.manual_seed(seed)
    net: nn.Module = kind(random)
    if kind is RandomNet and random.random() < 0.4:
        indices = [what[0] for kind, what in net.calls if kind == "part"]  # type: ignore[union-attr]
        parts, width, chain = net.parts, 3, []  # type: ignore[union-attr]
        for module in (parts[n] for n in indices):  # type: ignore[index]
            wanted = getattr(module, "in_channels", getattr(module, "num_features", width))
            chain += [module] if wanted == width else []
            width = getattr(module, "out_channels", width) if wanted == width else width
        middle = len(chain) // 2
        chain = [*chain[:middle], nn.Sequential(*chain[middle:])] if random.random() < 0.5 else chain
        net = nn.Sequential(*chain, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3))
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.normal_(std=0.2)  # type: ignore[union-attr, operator]
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr, operator]
    return net.double().train(bool(random.random() < 0.5))


def keep(seen: list[Tensor], module: nn.Module, args: Any, out: Any) -> None:
    seen.append(out)


def double(module: nn.Module, args: Any, out: Tensor) -> Tensor:
    return 2 * out


def shrink(module: nn.Module, args: Any, out: Tensor) -> None:
    out.mul_(0.5)


def scale_gradient(module: nn.Module, args: Any, out: Tensor) -> None:
    if out.requires_grad:
        out.register_hook(lambda gradient: 3 * gradient)


def more(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (args[0] + 0.1,)


class Case:
    """One network with a method, a way to step, and hooks; everything follows from the seed."""

    def __init__(self, seed: int, kind: type[RandomNet] = RandomNet) -> None:
        random = np.random.default_rng([seed, 1])
        self.seed, self.kind, net = seed, kind, network(seed, kind)
        pick: Callable[..., Any] = lambda options: options[random.integers(len(options))]  # noqa: E731
        self.method = pick(LOSSY) if random.random() < 0.25 else pick(EXACT)
        self.layers = int(random.integers(0, len(body_layers(net)) + 1))
        self.train_norm, self.step = bool(random.random() < 0.3), pick(STEPS)
        self.input_gradient = bool(random.random() < 0.3)
        heads = nn.Identity if kind is RandomTokenNet else nn.Linear
        leaves = [
            name
            for name, m in net.named_modules()
            if name and name != "head" and not list(m.children()) and not isinstance(m, heads)
        ]
        # The output of torch's linear layer may be a view: an operation in place after it loses the hooks on its gradient.
        scale = () if kind is RandomTokenNet else ("scale",)
        kinds = ("keep", "double", "shrink", *scale, "more")
        self.hooks = [(pick(leaves), pick(kinds), bool(random.random() < 0.5)) for _ in range(random.integers(0, 3))]

    def hook(self, net: nn.Module, seen: list[Tensor], before: bool) -> None:
        for name, kind, first in self.hooks:
            module = net.get_submodule(name)
            if first != before:
                continue
            if kind == "more":
                module.register_forward_pre_hook(more)
            else:
                chosen = {"keep": partial(keep, seen), "double": double, "shrink": shrink, "scale": scale_gradient}[kind]
                module.register_forward_hook(chosen)

    def gradients(self, method: str) -> dict[str, Tensor]:
        """Return the gradients of a few steps by a method, or by its oracle: ``vanilla`` or ``oracle``."""
        net, seen = network(self.seed, self.kind), list[Tensor]()
        self.hook(net, seen, before=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fedact.compress(net, "vanilla" if method == "oracle" else method, self.layers, self.train_norm)
        if method == "oracle":
            names = [*trained_layers(net, self.layers, self.train_norm), *smooth_activations(net)]
            over_last = layers_over_last(net)
            for name in names:
                reconstruct_in(net.get_submodule(name), self.method, name in over_last)
        self.hook(net, seen, before=False)
        generator = torch.Generator().manual_seed(self.seed)
        batches = [torch.randn(SHAPES[self.kind], generator=generator, dtype=torch.float64) for _ in range(2)]
        for x in batches:
            x.requires_grad_(self.input_gradient)
        self.run(net, batches, seen)
        found = {name: p.grad for name, p in net.named_parameters() if p.requires_grad and p.grad is not None}
        return found | {f"input {n}": x.grad for n, x in enumerate(batches) if x.grad is not None}

    def run(self, net: nn.Module, batches: list[Tensor], seen: list[Tensor]) -> None:
        def loss(x: Tensor) -> Tensor:
            seen.clear()
            y = net(x.clone())
            # A loss on what was seen in the middle, too.
            return y.square().sum() + sum(0.1 * out.sin().sum() for out in seen)

        first, second = batches
        if self.step == "once":
            loss(first).backward()
        elif self.step == "backward twice":
            value = loss(first)
            value.backward(retain_graph=True)
            value.backward()
        elif self.step == "two passes before one backward pass":
            (loss(first) + loss(second)).backward()
        elif self.step == "accumulated":
            loss(first).backward()
            loss(second).backward()
        else:
            value = loss(first)
            with torch.no_grad():
                net(second)
            value.backward()


def reconstruct_in(module: nn.Module, text: str, over_last: bool) -> None:
    """Make a plain module's gradient that of what a method reconstructs of its input; its output stays.

    over_last: whether its channels are the last dimension, which the method sees second.
    """
    plain, smooth, states = module.forward, isinstance(module, tuple(SMOOTH)), dict[torch.Size, Any]()

    def forward(x: Tensor) -> Tensor:
        method = make_method(text).for_dimensions(x.dim())
        if not torch.is_grad_enabled() or (smooth and not x.requires_grad):
            return plain(x)  # type: ignore[no-any-return]
        seen = as_methods_see(x.detach().clone(), over_last)
        compressed = method.compress(seen, states.get(seen.shape[1:]) or method.start(0))
        if compressed.state.tensors:
            states[seen.shape[1:]] = compressed.state
        again = method.reconstruct(compressed).detach()
        again = channels_last(again) if over_last else again
        if smooth:
            inplace, module.inplace = getattr(module, "inplace", False), False
            y = plain(again + x - x.detach())
            y = y + (plain(x) - y).detach()
            module.inplace = inplace
            return x.copy_(y) if inplace and x.requires_grad else y
        values = [(p, p.requires_grad) for p in module.parameters()]
        for p, _ in values:
            p.requires_grad_(False)
        y = plain(x)
        for p, needed in values:
            p.requires_grad_(needed)
        weights = plain(again)
        return y + weights - weights.detach()

    module.forward = forward  # type: ignore[method-assign]


def outcome(seed: int, kind: type[RandomNet] = RandomNet) -> str:
    """Return "equal", "refused", "no gradient" (plain autograd's own error), or how a case's gradients differ."""
    case = Case(seed, kind)
    lossy = case.method in LOSSY
    try:
        expected = case.gradients("oracle" if lossy else "vanilla")
    except RuntimeError:
        return "no gradient"
    try:
        found = case.gradients(case.method)
    except fedact.ConfigError:
        return "refused"
    except RuntimeError as error:
        return f"{type(error).__name__}: {error}"
    if found.keys() != expected.keys():
        return f"gradients of {sorted(found.keys() ^ expected.keys())}"
    scale = max((float(g.norm()) for g in expected.values()), default=1.0)
    errors = {n: float((found[n] - g).norm()) / max(float(g.norm()), 1e-6 * scale, 1e-30) for n, g in expected.items()}
    worst = max(errors, key=errors.__getitem__, default="")
    # Hardsigmoid's slope of a sixth has single precision in PyTorch's kernel.
    limit = TOLERANCE.get(case.method, 1e-6)
    if kind is RandomTokenNet and "bits=8" in case.method:
        # A norm's factors have values half-way between two codes, which fall to either by the last digit of a sum.
        limit = 1e-2
    return "equal" if not errors or errors[worst] <= limit else f"{errors[worst]:.2g} at {worst}"
