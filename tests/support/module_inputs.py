"""PyTorch's own inputs of its modules: every 4-dimensional one between two convolutions, against plain autograd.

In a process of its own: the private module that has the inputs changes torch's global settings. Takes every how manieth
module to look at; prints, as JSON, the number of cases, and those that are refused, differ or fail.
"""

import copy
import json
import sys
import types
import unittest
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn

import fedact
from fedact.nn.surgery import trained_parameters

METHODS = ("exact", "exact:derive=2", "checkpoint", "hosvd:variance=1.0")


def modules() -> Iterator[tuple[str, nn.Module, Tensor]]:
    """Yield names, modules and inputs of four dimensions that give outputs of four dimensions."""
    # torch's tests want a package that torch does not.
    stub = types.ModuleType("expecttest")
    stub.TestCase = unittest.TestCase
    sys.modules.setdefault("expecttest", stub)
    from torch.testing._internal.common_modules import module_db

    for info in module_db:
        options = {"device": "cpu", "dtype": torch.float64, "requires_grad": False, "training": False}
        try:
            inputs = info.module_inputs_func(info, **options)
        except Exception:
            continue
        for number, given in enumerate(inputs):
            arguments, call = given.constructor_input, given.forward_input
            if call is None or len(call.args) != 1 or call.kwargs or not isinstance(call.args[0], Tensor):
                continue
            x = call.args[0]
            if x.dim() != 4 or not x.is_floating_point() or not x.numel():
                continue
            torch.manual_seed(0)
            module = info.module_cls(*arguments.args, **arguments.kwargs)
            module = module.double() if any(True for _ in module.parameters()) else module
            try:
                y = copy.deepcopy(module).eval()(x.detach())
            except Exception:
                continue
            if isinstance(y, Tensor) and y.dim() == 4 and y.is_floating_point() and y.numel():
                yield f"{info.name} {number}", module, x.detach()


def network(module: nn.Module, x: Tensor) -> nn.Module:
    """Return the module between a convolution that makes its input, and one that reads its output."""
    torch.manual_seed(0)
    y = copy.deepcopy(module).eval()(x)
    first, last = nn.Conv2d(3, x.shape[1], 1), nn.Conv2d(y.shape[1], 2, 1)
    return nn.Sequential(first, copy.deepcopy(module), last, nn.Flatten(), nn.LazyLinear(2)).double()


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model(x).square().sum().backward()
    return {name: parameter.grad for name, parameter in trained_parameters(model).items() if parameter.grad is not None}


def difference(model: nn.Module, x: Tensor, method: str) -> str:
    """Return how a method's gradients differ from plain autograd's; "refused" for a ConfigError, "" for nothing."""
    expected = gradients(fedact.compress(copy.deepcopy(model), "vanilla", model.layers), x)
    try:
        found = gradients(fedact.compress(copy.deepcopy(model), method, model.layers), x)
    except fedact.ConfigError:
        return "refused"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if found.keys() != expected.keys():
        return f"gradients of {sorted(found)}, not of {sorted(expected)}"
    # A bias before a norm of each channel has no gradient but rounding: it is told by the size of the others.
    least = 1e-6 * max(float(g.norm()) for g in expected.values())
    errors = {name: float((found[name] - g).norm() / g.norm().clamp_min(max(least, 1e-9))) for name, g in expected.items()}
    return "" if max(errors.values()) < 1e-8 else f"{max(errors.values()):.2g} at {max(errors, key=errors.__getitem__)}"


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    count, refused, wrong = 0, [], {}
    for place, (name, module, x) in enumerate(modules()):
        if place % int(sys.argv[1]):
            continue
        model = network(module, x)
        images = torch.randn(x.shape[0], 3, *x.shape[2:], dtype=torch.float64)
        try:
            model(images)
            model.layers = sum(isinstance(part, nn.Conv2d) for part in model.modules())
            plain = gradients(fedact.compress(copy.deepcopy(model), "vanilla", model.layers), images)
        except Exception:
            continue
        # A fractional power of a negative number has no gradient at all.
        if not all(bool(gradient.isfinite().all()) for gradient in plain.values()):
            continue
        for method in METHODS:
            count += 1
            said = difference(model, images, method)
            if said == "refused":
                refused.append(f"{name}, {method}")
            elif said:
                wrong[f"{name}, {method}"] = said
    print(json.dumps({"count": count, "refused": refused, "wrong": wrong}))


if __name__ == "__main__":
    main()
