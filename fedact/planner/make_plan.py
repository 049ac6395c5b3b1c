"""The planner's two questions: which plan a budget gets, and how much gradient error a plan has by now."""

from dataclasses import replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from fedact.compression import AUTO, Method, choose_method, method_name
from fedact.config.errors import ConfigError
from fedact.config.plan import Kept, Plan
from fedact.config.sizes import parse_bytes
from fedact.config.updates import WHOLE, update_name
from fedact.measure.memory import stored_bytes
from fedact.models.tasks import Loss
from fedact.nn.body import counted
from fedact.nn.surgery import install, methods_of, recompute_of, rematerialized_inputs, trained_parameters
from fedact.planner.adapted_depths import adapted
from fedact.planner.example_check import fixed_randomness, valid_example
from fedact.planner.garbage import older_objects_left_out
from fedact.planner.problem import Problem, make_problem
from fedact.planner.search import Solution, depths_for, search
from fedact.planner.slowdown import SlowdownLimit, batch_flops
from fedact.planner.smaller_images import least_inference, skipped_reason
from fedact.planner.solvers import least_bytes, problem_at, runs_forward, solver_of, whole_solver
from fedact.planner.spare_budget import with_spare_budget
from fedact.planner.step_error import step_error
from fedact.planner.step_memory import VanillaStep, floor_bytes, vanilla_step
from fedact.training.threads import threads_for

DIGITS = 4
"""Significant digits of an expected error."""


def make_plan(
    model: nn.Module,
    budget: int | str | None,
    example: tuple[Tensor, Tensor],
    method: str | Method = "hosvd",
    layers: int | str = "auto",
    scope: str = "peak",
    max_slowdown: float | None = None,
    loss: Loss = F.cross_entropy,
    momentum: bool = False,
    train_norm: bool = False,
    most_layers: int | None = None,
    recompute: int | str = "auto",
    update: str = WHOLE,
) -> Plan:
    """Return what a client does under a budget; the model is left as it is.

    budget: bytes, a size such as "512KB", or None for no bound. example: a whole batch of inputs and labels from the
    server's own data. method: as given, or "auto" to mix methods tensor by tensor for the least gradient error. layers:
    trained convolutions, or "auto" for the last 8, fewer where the budget asks for it. scope: the bytes that the budget
    bounds: "peak", all that is alive at any moment of a step, or "saved", what is kept for the backward pass.
    max_slowdown: the most time of a batch relative to plain training's. momentum: whether the optimizer has any.
    train_norm: also train the norms after the first trained layer. most_layers: what "auto" trains where a
    trial chose it, instead of 8. recompute: how many convolutions back a saved input may be, for another that is no smaller
    to be made again from it; "auto" as the budget asks, 0 where it does not. What the method's own settings say of it stays.
    update: what of these layers is trained: "layers" (whole), "bias" or "lora:rank=4"; with the last two nothing is made
    again, and no block runs in streams.

    What shrinks to fit, in this order: settings that were not given, micro-batch, recompute, layers (not if given),
    everything but the head, the client itself (status ``skipped``, with the least bytes it would need). Every step's bytes
    are measured before they are promised.

    Raises ConfigError for an unknown method, scope or size, for layers that the model does not have, or where the model or
    the loss cannot be run on the example.

    >>> import fedact, torch
    >>> layers = torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3), torch.nn.Flatten()
    >>> model = torch.nn.Sequential(*layers, torch.nn.Linear(8 * 4 * 4, 10))
    >>> example = torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])
    >>> plan = fedact.make_plan(model, "8KB", example, method="hosvd:variance=0.8", layers=1)
    >>> plan.status, plan.layers, plan.peak_bytes <= 8_000
    ('ok', 1, True)
    """
    if scope not in ("saved", "peak"):
        raise ConfigError(f"unknown scope {scope!r}: allowed are peak, saved")
    if max_slowdown is not None and not (isinstance(max_slowdown, int | float) and max_slowdown > 0):
        raise ConfigError(f"max_slowdown is a number above 0, not {max_slowdown!r}")
    if recompute != "auto" and (isinstance(recompute, bool) or not isinstance(recompute, int) or recompute < 0):
        raise ConfigError(f"recompute is a whole number from 0 or auto, not {recompute!r}")
    size = None if budget is None else parse_bytes(budget)
    if train_norm and update_name(update) != WHOLE:
        raise ConfigError(f"train_norm is for update {WHOLE}, not for {update}")
    given: dict[str, Any] = {"loss": loss, "momentum": momentum, "train_norm": train_norm, "recompute": recompute}
    given["update"] = update_name(update)
    example = valid_example(example)
    with fixed_randomness(example[0].device), threads_for(example[0]), older_objects_left_out():
        problem = make_problem(model, example, method=choose_method(method), budget=size, scope=scope, **given)
        depths = depths_for(problem, layers, most_layers)
        solver = solver_of(problem, depths.requested, max_slowdown)
        if runs_forward(problem, solver) and (solution := search(problem, depths, solver)):
            solution, whole = with_spare_budget(problem, solution, solver), problem_at(problem, solver, solution.depth)
            return _plan(problem, solution, depths.requested, max_slowdown, whole)
        depth = 0 if problem.has_head else depths.candidates[0]
        return _skipped(problem_at(problem, solver, depth), least_bytes(solver, depth), depth, max_slowdown)


def expected_error(model: nn.Module, plan: Plan, example: tuple[Tensor, Tensor], loss: Loss = F.cross_entropy) -> float:
    """Return the sum over a plan's trained layers of ||g' - g||^2 / ||g||^2 on an example, with the weights as they are.

    g: the exact weight gradient, g': the plan's. It is measured on the first examples, as many as when the plan was made, in
    the plan's micro-batches; the model is left as it is. Raises ConfigError for a plan of another model, or where the model
    or the loss cannot be run on the example.
    """
    example = valid_example(example)
    with fixed_randomness(example[0].device), threads_for(example[0]):
        given: dict[str, Any] = {"budget": None, "scope": plan.scope, "loss": loss, "room": plan.room_bytes}
        problem = make_problem(model, example, method=AUTO, update=plan.update, train_norm=plan.example_norms, **given)
        problem = adapted(problem, plan.layers) if problem.is_adapted else problem
        found = step_error(problem, methods_of(problem.model, plan), plan.micro_batch)
        return _rounded(found.error) if found else 0.0


def _rounded(error: float) -> float:
    return float(f"{error:.{DIGITS}g}")


def _plan(asked: Problem, solution: Solution, requested: int, max_slowdown: float | None, whole: Problem) -> Plan:
    """Return the plan of a solution; whole: the problem at its depth, on whole maps."""
    methods, memory, problem = solution.methods, solution.memory, replace(whole, room=solution.room)
    found = solution.step_error or step_error(problem, methods, solution.micro_batch, solution.observed)
    # The first step alone has the operations that start a method's state.
    if found is None or any(method.traits.reads_state for method in methods.values()):
        flops = batch_flops(problem, methods, solution.micro_batch, solution.prefix)
    else:
        flops = round(found.flops * problem.batch_size / solution.micro_batch)
    reasons = [f"layers {requested} to {solution.depth}"] if solution.depth < requested else []
    if reasons and not solution.depth and problem.scope == "peak" and problem.method != AUTO:
        first, other = asked.depths("auto")[0], replace(asked, room=solution.room)
        least = least_bytes(solver_of(other, first, max_slowdown), first)
        reasons[0] += "" if problem.within_budget(least) else f" (one layer needs at least {least:,} bytes)"
    if solution.caps is not None:
        reasons.append(f"ranks at most those of variance {solution.caps:g}")
    if solution.room is not None:
        reasons.append(f"blocks in streams with {solution.room:,} bytes of room")
    if (tiles := solution.prefix.tiles) > 1:
        reasons.append(f"prefix in {tiles} x {tiles} tiles")
    if solution.micro_batch < problem.batch_size:
        reasons.append(f"micro-batch {problem.batch_size} to {solution.micro_batch}")
    recompute, (preferred, *others) = recompute_of(install(problem.model, methods, room=solution.room)), problem.recomputes
    if recompute and others and not preferred:
        reasons.append(f"recompute 0 to {recompute}")
    vanilla = vanilla_step(whole, list(methods))
    # While these layers and no others are trainable.
    common = _common_fields(problem, vanilla)
    return Plan(
        status="ok" if solution.depth else "head-only",
        micro_batch=solution.micro_batch,
        layers=solution.depth,
        kept=_kept(problem, solution),
        saved_bytes=memory.saved_bytes,
        state_bytes=memory.state_bytes,
        peak_bytes=memory.peak_bytes,
        paper_bytes=memory.paper_bytes,
        working_bytes=memory.working_bytes,
        fixed=all(method.has_fixed_bytes(problem.scope) for method in methods.values()),
        reason="; ".join(reasons) or None,
        prefix_chunk=solution.prefix.chunk,
        tiles=solution.prefix.tiles,
        recompute=recompute,
        expected_error=_rounded(found.error) if found else 0.0,
        slowdown=solution.slowdown,
        room_bytes=solution.room,
        by_layer=tuple(memory.by_layer.items()),
        step_flops=flops,
        vanilla_step_flops=vanilla.flops,
        batch_bytes=stored_bytes(problem.examples(solution.micro_batch)),
        **common,
    )


def _kept(problem: Problem, solution: Solution) -> tuple[Kept, ...]:
    """Return the plan's entry for every layer that saves an input; the bytes are at the input that is really stored."""
    methods = solution.methods
    rematerialized = rematerialized_inputs(problem.model, methods, solution.room)
    origins = [origin for origin in rematerialized.values() if origin]
    names, size = [*problem.trained(solution.depth), *origins], solution.micro_batch
    # What does not follow the data is the same for one example as often as there are examples.
    one = all(method.ceiling.fixed_size for method in methods.values())
    inputs = problem.inputs(names, 1 if one else size)
    if one:
        inputs = {name: x.expand(size, *x.shape).flatten(0, 1) for name, x in inputs.items()}
    entries = []
    for name, method in methods.items():
        # "" where another layer's entry has the bytes.
        stored = rematerialized.get(name, name)
        cap = method.ceiling.predicted_bytes(inputs[stored]) if stored else 0
        error = _rounded(solution.input_errors[stored]) if stored in solution.input_errors else None
        entries.append(Kept(name, tuple(inputs[name].shape), method_name(method.codec), cap, error))
    return tuple(entries)


def _skipped(problem: Problem, least: int, depth: int, max_slowdown: float | None) -> Plan:
    inference = least_inference(problem, whole_solver(problem, 0, max_slowdown))
    reason = skipped_reason(
        problem,
        least,
        depth,
        SlowdownLimit(problem, max_slowdown),
        lambda other: least_bytes(whole_solver(other, depth, max_slowdown), depth),
        inference,
    )
    unmeasured: dict[str, Any] = {"saved_bytes": None, "state_bytes": None, "peak_bytes": None, "paper_bytes": None}
    return Plan(
        status="skipped",
        micro_batch=0,
        layers=0,
        kept=(),
        fixed=True,
        reason=reason,
        least_bytes=least,
        **unmeasured,
        **_common_fields(problem, vanilla_step(problem, problem.trained(depth))),
    )


def _common_fields(problem: Problem, vanilla: VanillaStep) -> dict[str, Any]:
    """Return the fields of every plan, skipped or not: the request, plain training's bytes, the device's other memory."""
    trained = sum(parameter.nbytes for parameter in trained_parameters(problem.model).values())
    method = problem.method
    return {
        "method": method if isinstance(method, str) else method_name(method),
        "budget_bytes": problem.budget,
        "scope": problem.scope,
        "batch_size": problem.batch_size,
        "vanilla_saved_bytes": vanilla.saved_bytes,
        "weight_bytes": stored_bytes([*problem.model.parameters(), *problem.model.buffers()]),
        "gradient_bytes": trained,
        "optimizer_bytes": trained if problem.momentum else 0,
        "floor_bytes": floor_bytes(problem),
        "update": problem.update,
        "counted": counted(problem.model),
        "example_norms": problem.example_norms,
    }
