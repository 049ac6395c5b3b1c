"""(model, example, budget) -> plan: who gives way, and how far, until a measured step fits."""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedact.compression import Method, make_method, method_name
from fedact.compression.exact import Vanilla
from fedact.errors import ConfigError
from fedact.memory import Memory, largest, measure_memory, stored_bytes
from fedact.plans import Kept, Plan
from fedact.sizes import parse_bytes
from fedact.surgery import (
    assign,
    calibrate,
    convolutions,
    head,
    install,
    kept_inputs,
    made_again,
    restore,
    trained_layers,
    trained_parameters,
)
from fedact.training import Loss, bytes_in_scope, micro_step

AUTO_LAYERS = 8
"""Where ``layers="auto"`` starts; on the digits (seed 0) 8 convolutions ended at 93.8 %, 4 at 92.0 %."""
GENTLE = 0.95
"""Free ranks first try to explain this much at every micro-batch, and less only where no micro-batch allows it."""

MOMENTUM, WEIGHT_DECAY = 0.9, 1e-4
"""Any will do: what an optimizer's step holds does not depend on their size."""

Methods = Mapping[str, Method]


@dataclass(frozen=True)
class _Problem:
    """What a plan is made for; the model is a copy that may be changed."""

    model: nn.Module
    x: Tensor
    y: Tensor
    method: Method
    budget: int | None
    scope: str
    loss: Loss
    momentum: bool
    train_norm: bool

    def trained(self, depth: int) -> list[str]:
        return trained_layers(self.model, depth, self.train_norm)

    def fits(self, memory: Memory) -> bool:
        return self.budget is None or bytes_in_scope(memory, self.scope) <= self.budget


def make_plan(
    model: nn.Module,
    budget: int | str | None,
    example: tuple[Tensor, Tensor],
    method: str | Method = "hosvd",
    layers: int | str = "auto",
    scope: str = "saved",
    loss: Loss = F.cross_entropy,
    momentum: bool = False,
    train_norm: bool = False,
) -> Plan:
    """Return what a client does under a budget; the model is left as it is.

    budget: bytes, a size such as "512KB", or None for no bound. example: a whole batch of inputs and labels from the
    server's own data. layers: trained convolutions, or "auto" to start at 8 and lose some where the budget asks for it.
    scope: what the budget bounds, "saved" or "peak" bytes. train_norm: also train the batch norms after the first trained
    convolution. What gives way, in this order: free ranks, micro-batch, layers
    (not if given), everything but the head, the client itself (status ``skipped``, with the least it would need).
    Raises ConfigError for an unknown method, scope or size, or for layers that the model does not have.
    """
    if scope not in ("saved", "peak"):
        raise ConfigError(f"unknown scope {scope!r}: allowed are peak, saved")
    limit = None if budget is None else parse_bytes(budget)
    problem = _Problem(_copied(model), *example, make_method(method), limit, scope, loss, momentum, train_norm)
    depths = _depths(problem.model, layers)
    for depth in depths:
        levels = lru_cache(maxsize=None)(partial(_levels, problem, depth))
        for gentle in (True, False):
            for micro_batch in _halvings(len(problem.y)):
                chosen = [methods for level, methods in levels(micro_batch) if (level >= GENTLE) == gentle]
                found = _first_that_fits(problem, chosen, micro_batch)
                if found is not None:
                    return _plan(problem, depth, micro_batch, *found, asked=depths[0])
    return _skipped(problem, depths[-1])


def _copied(model: nn.Module) -> nn.Module:
    try:
        return restore(copy.deepcopy(model))
    except Exception as error:
        raise ConfigError(f"a plan is made on a copy of the model, which cannot be copied: {error}") from None


def _depths(model: nn.Module, layers: int | str) -> list[int]:
    """Return the numbers of trained convolutions to try, the one that was asked for first and the head alone last."""
    if layers != "auto" and (isinstance(layers, bool) or not isinstance(layers, int)):
        raise ConfigError(f"layers is a whole number or auto, not {layers!r}")
    most = min(AUTO_LAYERS, len(convolutions(model))) if layers == "auto" else int(layers)
    trained_layers(model, most)
    least = min(1, most) if layers == "auto" else most
    alone = [0] if head(model) else []
    return list(dict.fromkeys([*range(most, least - 1, -1), *alone]))


def _levels(problem: _Problem, depth: int, micro_batch: int) -> list[tuple[float, Methods]]:
    """Return the methods of all kept tensors at each level, the gentlest level first."""
    calibration = problem.x if problem.method.calibrated else problem.x[:micro_batch]
    inputs = kept_inputs(problem.model, problem.trained(depth), calibration)
    assigned = assign(problem.model, inputs, problem.method)
    methods = {name: assigned[name].for_dimensions(x.dim()) for name, x in inputs.items()}
    if problem.budget is None:
        return [(1.0, methods)]
    ladders = {name: method.levels(inputs[name]) for name, method in methods.items()}
    return [(level, {name: ladder[level] for name, ladder in ladders.items()}) for level in next(iter(ladders.values()))]


def _first_that_fits(problem: _Problem, choices: list[Methods], micro_batch: int) -> tuple[Methods, Memory] | None:
    for methods in choices:
        memory = measure_step(problem, methods, micro_batch)
        if problem.fits(memory):
            return methods, memory
    return None


def measure_step(problem: _Problem, methods: Methods, micro_batch: int, prefix_chunk: int = 0) -> Memory:
    """Measure a step that ends a batch, in which every method holds as much as its caps allow.

    prefix_chunk: how many examples at a time the frozen part is run on; 0 for all at once.
    Where the first step leaves a state behind, the second, which starts from it, is measured too.
    """
    # Cloned: a view of the whole batch is not what a client's step is given.
    x, y = problem.x[:micro_batch].clone(), problem.y[:micro_batch].clone()
    ceilings = {name: method.ceiling for name, method in methods.items()}
    model = install(problem.model, ceilings, prefix_chunk=prefix_chunk)
    if problem.method.calibrated:
        calibrate(model, problem.x)
    parameters = trained_parameters(model).values()
    optimizer = torch.optim.SGD(
        parameters, lr=0.0, momentum=MOMENTUM if problem.momentum else 0.0, weight_decay=WEIGHT_DECAY
    )
    memories: list[Memory] = []
    while not memories or (len(memories) == 1 and memories[0].state_bytes):
        with measure_memory(model, inputs=(x, y), optimizer=optimizer) as memory:
            micro_step(model, x, y, len(problem.y), problem.loss, optimizer, clip_norm=1.0)
        model.zero_grad()
        memories.append(memory)
    return largest(memories)


def _plan(problem: _Problem, depth: int, micro_batch: int, methods: Methods, memory: Memory, asked: int) -> Plan:
    again = made_again(problem.model, methods)
    origins = [origin for origin in again.values() if origin]
    inputs = kept_inputs(problem.model, [*problem.trained(depth), *origins], problem.x[:micro_batch])
    counted = {name: again.get(name, name) for name in methods}
    caps = {
        name: method.ceiling.predicted_bytes(inputs[own]) if (own := counted[name]) else 0
        for name, method in methods.items()
    }
    kept = tuple(Kept(name, tuple(inputs[name].shape), method_name(method), caps[name]) for name, method in methods.items())
    gave_way = [f"layers {asked} to {depth}"] if depth < asked else []
    if micro_batch < len(problem.y):
        gave_way.append(f"micro-batch {len(problem.y)} to {micro_batch}")
    return Plan(
        status="ok" if depth else "head-only",
        micro_batch=micro_batch,
        layers=depth,
        kept=kept,
        saved_bytes=memory.saved_bytes,
        state_bytes=memory.state_bytes,
        peak_bytes=memory.peak_bytes,
        paper_bytes=memory.paper_bytes,
        fixed=all(method.fixed and (method.same_work or problem.scope == "saved") for method in methods.values()),
        reason="; ".join(gave_way) or None,
        **_common(problem, list(methods)),
    )


def _skipped(problem: _Problem, depth: int) -> Plan:
    choices = [methods for _, methods in _levels(problem, depth, 1)]
    least = min(bytes_in_scope(measure_step(problem, methods, 1), problem.scope) for methods in choices)
    what = f"{depth} layers" if depth else "the head alone"
    reason = f"even {what}, one example at a time, needs {least:,} {problem.scope} bytes"
    if problem.scope == "peak":
        reason += f"; inference alone peaks at {_inference_peak(problem):,} bytes"
    nothing: dict[str, Any] = {"saved_bytes": None, "state_bytes": None, "peak_bytes": None, "paper_bytes": None}
    return Plan(
        status="skipped",
        micro_batch=0,
        layers=0,
        kept=(),
        fixed=True,
        reason=reason,
        least_bytes=least,
        **nothing,
        **_common(problem, problem.trained(depth)),
    )


def _common(problem: _Problem, names: list[str]) -> dict[str, Any]:
    """Return the fields that every plan has, whatever it says: what was asked, plain training, the device's other memory."""
    plain: Methods = dict.fromkeys(names, Vanilla())
    memory = measure_step(replace(problem, method=Vanilla()), plain, len(problem.y))
    trained = sum(parameter.nbytes for parameter in trained_parameters(problem.model).values())
    return {
        "method": method_name(problem.method),
        "budget_bytes": problem.budget,
        "scope": problem.scope,
        "batch_size": len(problem.y),
        "vanilla_saved_bytes": memory.saved_bytes,
        "weight_bytes": stored_bytes([*problem.model.parameters(), *problem.model.buffers()]),
        "gradient_bytes": trained,
        "optimizer_bytes": trained if problem.momentum else 0,
    }


def _inference_peak(problem: _Problem) -> int:
    with measure_memory(problem.model, inputs=(problem.x, problem.y)) as memory, torch.no_grad():
        problem.model.eval()(problem.x[:1])
    return memory.peak_bytes


def _halvings(size: int) -> Iterator[int]:
    while size > 1:
        yield size
        size = (size + 1) // 2
    yield 1
