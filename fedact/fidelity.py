"""How close a method's gradient is to the exact one, layer by layer, and what a step of it holds."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from fedact.compression import make_method, method_name
from fedact.memory import largest, measure_memory
from fedact.surgery import compress, restore, trained_parameters

Batch = tuple[Tensor, Tensor]
Gradients = dict[str, Tensor]


@dataclass(frozen=True)
class Fidelity:
    """One method on some batches.

    saved, state, peak and paper bytes: the largest over the batches. cosine: of each trained weight's gradient with the
    exact one, the mean over the batches. error: ||g' - g||^2 / ||g||^2, likewise.
    """

    method: str
    saved_bytes: int
    state_bytes: int
    peak_bytes: int
    paper_bytes: int
    cosine: dict[str, float]
    error: dict[str, float]


def measure_fidelity(
    model: nn.Module,
    methods: Sequence[str],
    warm_up: Batch,
    batches: Sequence[Batch],
    layers: int,
    train_norm: bool = False,
    seed: int = 0,
) -> list[Fidelity]:
    """Measure each method on the same batches; the model is left plain.

    warm_up: a batch of its own before the first that counts: a method that keeps a state finds it there.
    """
    exact = [_step(compress(model, "vanilla", layers, train_norm), batch) for batch in batches]
    result = []
    for text in methods:
        compress(model, text, layers, train_norm, seed)
        _step(model, warm_up)
        result.append(_measured(method_name(make_method(text)), model, batches, exact))
    restore(model)
    return result


def _measured(name: str, model: nn.Module, batches: Sequence[Batch], exact: Sequence[Gradients]) -> Fidelity:
    memories, gradients = [], []
    for batch in batches:
        with measure_memory(model, inputs=batch) as memory:
            _backward(model, batch)
        memories.append(memory)
        gradients.append(_taken(model))
    pairs = list(zip(gradients, exact, strict=True))
    weights = [key for key in exact[0] if key.endswith("weight")]
    most = largest(memories)
    return Fidelity(
        method=name,
        saved_bytes=most.saved_bytes,
        state_bytes=most.state_bytes,
        peak_bytes=most.peak_bytes,
        paper_bytes=most.paper_bytes,
        cosine={key: _mean([_cosine(ours[key], g[key]) for ours, g in pairs]) for key in weights},
        error={key: _mean([_error(ours[key], g[key]) for ours, g in pairs]) for key in weights},
    )


def _step(model: nn.Module, batch: Batch) -> Gradients:
    _backward(model, batch)
    return _taken(model)


def _backward(model: nn.Module, batch: Batch) -> None:
    F.cross_entropy(model(batch[0]), batch[1]).backward()  # type: ignore[no-untyped-call]


def _taken(model: nn.Module) -> Gradients:
    """Take the gradients out of a model."""
    trained = trained_parameters(model)
    found = {name: parameter.grad for name, parameter in trained.items() if parameter.grad is not None}
    model.zero_grad()
    return found


def _cosine(ours: Tensor, exact: Tensor) -> float:
    return float(F.cosine_similarity(ours.flatten().double(), exact.flatten().double(), dim=0))


def _error(ours: Tensor, exact: Tensor) -> float:
    return float((ours.double() - exact.double()).square().sum() / exact.double().square().sum())


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
