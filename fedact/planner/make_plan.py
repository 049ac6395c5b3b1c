"""What the rest of the project asks of the planner: a plan, and how good one still is."""

from itertools import product
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from fedact.compression import AUTO, Method, choose_method, method_name
from fedact.compression.exact import Vanilla
from fedact.config.errors import ConfigError
from fedact.config.plan import Kept, Plan
from fedact.config.sizes import parse_bytes
from fedact.measure.memory import stored_bytes
from fedact.models.tasks import Loss
from fedact.nn.layers.base import has_weights
from fedact.nn.surgery import kept_inputs, made_again, methods_of, trained_parameters
from fedact.planner.allocation import ELEMENTS, EXAMPLES, Sharing
from fedact.planner.example_check import checked, own_randomness
from fedact.planner.fixed_method import GivingWay
from fedact.planner.problem import Methods, Problem, inference_peak, make_problem, measure_step, plain_saved_bytes
from fedact.planner.search import Chooser, Found, depths_for, search
from fedact.planner.sensitivity import total_error
from fedact.planner.slowdown import Pace, batch_flops
from fedact.training.threads import threads_for

DIGITS = 4
"""Significant digits of an expected error."""


def make_plan(
    model: nn.Module,
    budget: int | str | None,
    example: tuple[Tensor, Tensor],
    method: str | Method = "hosvd",
    layers: int | str = "auto",
    scope: str = "saved",
    max_slowdown: float | None = None,
    loss: Loss = F.cross_entropy,
    momentum: bool = False,
    train_norm: bool = False,
) -> Plan:
    """Return what a client does under a budget; the model is left as it is.

    budget: bytes, a size such as "512KB", or None for no bound. example: a whole batch of inputs and labels from the
    server's own data. method: as given, or "auto" to mix methods tensor by tensor for the least gradient error. layers:
    trained convolutions, or "auto" for as many as are expected to teach something. scope: what the budget bounds, "saved"
    or "peak" bytes. max_slowdown: the most that a batch may take of plain training's time. train_norm: also train the batch
    norms after the first trained convolution. What gives way, in this order: settings that were not given, micro-batch,
    layers (not if given), everything but the head, the client itself (status ``skipped``, with the least it would need).
    Raises ConfigError for an unknown method, scope or size, for layers that the model does not have, or where the model or
    the loss cannot be run on the example.
    """
    if scope not in ("saved", "peak"):
        raise ConfigError(f"unknown scope {scope!r}: allowed are peak, saved")
    if max_slowdown is not None and not (isinstance(max_slowdown, int | float) and max_slowdown > 0):
        raise ConfigError(f"max_slowdown is a number above 0, not {max_slowdown!r}")
    limit = None if budget is None else parse_bytes(budget)
    given: dict[str, Any] = {"loss": loss, "momentum": momentum, "train_norm": train_norm}
    example = checked(example)
    with own_randomness(example[0].device), threads_for(example[0]):
        problem = make_problem(model, example, method=choose_method(method), budget=limit, scope=scope, **given)
        pace = Pace(problem, max_slowdown)
        if _too_small_for_inference(problem):
            # There is hardly a need to search: whatever is trained, the model is run forward.
            head_alone = _chooser(problem, 0, pace)
            if not problem.within(least := _least_bytes(problem, head_alone, 0)):
                return _skipped(problem, least, 0, max_slowdown)
        depths = depths_for(problem, layers)
        chooser = _chooser(problem, depths.asked, pace)
        found = search(problem, depths, chooser)
        if found is None:
            depth = 0 if problem.has_head else depths.possible[0]
            return _skipped(problem, _least_bytes(problem, chooser, depth), depth, max_slowdown)
        return _plan(problem, found, depths.asked)


def _too_small_for_inference(problem: Problem) -> bool:
    return problem.has_head and problem.scope == "peak" and not problem.within(inference_peak(problem))


def expected_error(model: nn.Module, plan: Plan, example: tuple[Tensor, Tensor], loss: Loss = F.cross_entropy) -> float:
    """Return the sum over a plan's trained layers of ||g' - g||^2 / ||g||^2 on an example, with the weights as they are.

    The first examples are taken, as many as when the plan was made, in its micro-batches; the model is left as it is.
    Raises ConfigError for a plan of another model, or where the model or the loss cannot be run on the example.
    """
    example = checked(example)
    with own_randomness(example[0].device), threads_for(example[0]):
        problem = make_problem(model, example, method=AUTO, budget=None, scope="saved", loss=loss)
        return _error(problem, methods_of(problem.model, plan), plan.micro_batch)


def _error(problem: Problem, methods: Methods, micro_batch: int) -> float:
    if all(method.traits.keeps_input for method in methods.values()):
        return 0.0
    trained = [name for name in methods if has_weights(problem.model.get_submodule(name))]
    count = max(micro_batch, problem.affordable(trained, EXAMPLES, ELEMENTS))
    calibration = problem.x if any(method.traits.calibrated for method in methods.values()) else None
    found = total_error(problem.model, problem.examples(count), methods, problem.loss, micro_batch, calibration)
    return float(f"{found:.{DIGITS}g}")


def _chooser(problem: Problem, deepest: int, pace: Pace) -> Chooser:
    method = problem.method
    free = method == AUTO or (isinstance(method, Method) and method.has_free_settings and problem.budget is not None)
    return Sharing(problem, deepest, pace) if free else GivingWay(problem, pace)


def _plan(problem: Problem, found: Found, asked: int) -> Plan:
    methods, memory = found.methods, found.memory
    gave_way = [f"layers {asked} to {found.depth}"] if found.depth < asked else []
    if found.micro_batch < problem.batch_size:
        gave_way.append(f"micro-batch {problem.batch_size} to {found.micro_batch}")
    return Plan(
        status="ok" if found.depth else "head-only",
        micro_batch=found.micro_batch,
        layers=found.depth,
        kept=_kept(problem, found),
        saved_bytes=memory.saved_bytes,
        state_bytes=memory.state_bytes,
        peak_bytes=memory.peak_bytes,
        paper_bytes=memory.paper_bytes,
        fixed=all(method.has_fixed_bytes(problem.scope) for method in methods.values()),
        reason="; ".join(gave_way) or None,
        prefix_chunk=found.prefix_chunk,
        expected_error=_error(problem, methods, found.micro_batch),
        slowdown=found.slowdown,
        by_layer=tuple(memory.by_layer.items()),
        step_flops=batch_flops(problem, methods, found.micro_batch, found.prefix_chunk),
        vanilla_step_flops=batch_flops(problem, dict.fromkeys(methods, Vanilla()), 1),
        **_common(problem, list(methods)),
    )


def _kept(problem: Problem, found: Found) -> tuple[Kept, ...]:
    methods = found.methods
    again = made_again(problem.model, methods)
    origins = [origin for origin in again.values() if origin]
    x, _ = problem.examples(found.micro_batch)
    inputs = kept_inputs(problem.model, [*problem.trained(found.depth), *origins], x)
    counted = {name: again.get(name, name) for name in methods}
    caps = {
        name: method.ceiling.predicted_bytes(inputs[own]) if (own := counted[name]) else 0
        for name, method in methods.items()
    }
    added = {name: float(f"{found.added[own]:.{DIGITS}g}") for name, own in counted.items() if own in found.added}
    return tuple(
        Kept(name, tuple(inputs[name].shape), method_name(method), caps[name], added.get(name))
        for name, method in methods.items()
    )


def _least_bytes(problem: Problem, chooser: Chooser, depth: int) -> int:
    ways = product(chooser.coarsest(depth), problem.chunks(depth, 1))
    return min(problem.held(measure_step(problem, methods, 1, chunk)) for methods, chunk in ways)


def _skipped(problem: Problem, least: int, depth: int, max_slowdown: float | None) -> Plan:
    what = f"{depth} layer{'s'[: depth > 1]}" if depth else "the head alone"
    reason = f"even {what}, one example at a time, needs {least:,} {problem.scope} bytes"
    if problem.budget is None or least <= problem.budget:
        reason = f"even {what} takes more than {max_slowdown:g} times as long as plain training"
    if problem.scope == "peak":
        reason += f"; inference alone peaks at {inference_peak(problem):,} bytes"
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


def _common(problem: Problem, names: list[str]) -> dict[str, Any]:
    """Return the fields that every plan has, whatever it says: what was asked, plain training, the device's other memory."""
    plain = plain_saved_bytes(problem, names)
    trained = sum(parameter.nbytes for parameter in trained_parameters(problem.model).values())
    method = problem.method
    return {
        "method": method if isinstance(method, str) else method_name(method),
        "budget_bytes": problem.budget,
        "scope": problem.scope,
        "batch_size": problem.batch_size,
        "vanilla_saved_bytes": plain,
        "weight_bytes": stored_bytes([*problem.model.parameters(), *problem.model.buffers()]),
        "gradient_bytes": trained,
        "optimizer_bytes": trained if problem.momentum else 0,
    }
