"""Checks of a plan's example: its form, and one pass through the model and the loss before anything is planned."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fedact.config.errors import ConfigError
from fedact.models.tasks import Loss
from fedact.nn.surgery import install


def valid_example(example: Any) -> tuple[Tensor, Tensor]:
    """Return the inputs and labels of an example; raises ConfigError for what is no batch of finite inputs with labels."""
    if not isinstance(example, tuple | list) or len(example) != 2 or not all(isinstance(each, Tensor) for each in example):
        raise ConfigError(f"an example is a pair of tensors, inputs and labels, not {_in_words(example)}")
    x, y = example
    if not x.dim() or not y.dim() or not len(x) or len(x) != len(y):
        counts = (len(each) if each.dim() else "no" for each in (x, y))
        raise ConfigError("an example is a batch of inputs with as many labels, not {} inputs and {} labels".format(*counts))
    if x.is_floating_point() and not x.isfinite().all():
        raise ConfigError("an example's inputs are finite numbers, and among these is a NaN or an infinity")
    return x.detach(), y


def called_modules(model: nn.Module, x: Tensor, y: Tensor, loss: Loss) -> frozenset[str]:
    """Return the names of the modules that the model calls for the first example, batch norm and dropout as in a plan.

    Raises ConfigError where the model cannot be run on it or gives no finite numbers, or where its loss for any of the
    labels is no number with a gradient.
    """
    called: set[str] = set()

    def add(module: nn.Module, args: Any, name: str) -> None:
        called.add(name)

    modules = install(model, {}).named_modules()
    handles = [module.register_forward_pre_hook(partial(add, name=name)) for name, module in modules]
    # Any code may run here and raise anything.
    try:
        with torch.no_grad():
            scores = model(x[:1].clone())
    except Exception as error:
        raise ConfigError(f"the model cannot be run on the example's inputs: {_first_line(error)}") from None
    finally:
        for handle in handles:
            handle.remove()
    if isinstance(scores, Tensor) and not scores.isfinite().all():
        raise ConfigError("the model's output for the example's first input has a NaN or an infinity")
    if isinstance(scores, Tensor):
        _check_loss(loss, scores, y)
    return frozenset(called)


@contextmanager
def fixed_randomness(device: torch.device) -> Iterator[None]:
    """Seed torch's generators for what is random in a model's own code, and put them back afterwards."""
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.default_generator.manual_seed(0)
        for each in cuda:
            with torch.cuda.device(each):
                torch.cuda.manual_seed(0)
        yield


def _check_loss(loss: Loss, scores: Tensor, y: Tensor) -> None:
    """Take the loss of every label with the first example's scores: two at a time, for scores may be whole images."""
    scores = scores.detach().requires_grad_()
    for labels in torch.split(y, 2):
        try:
            value: Any = loss(scores.expand(len(labels), *scores.shape[1:]), labels)
        except Exception as error:
            raise ConfigError(f"the loss cannot be taken of the model's output and a label: {_first_line(error)}") from None
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
            raise ConfigError(f"a loss is one number with a gradient, not {_in_words(value)}")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _in_words(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"{len(value)} of {', '.join(sorted({type(each).__name__ for each in value})) or 'nothing'}"
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}{'' if value.requires_grad else ' without one'}"
    return f"a {type(value).__name__}"
