"""A frozen prefix's steps on whole maps, with inverted residuals in streams as one step each."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from fedact.nn.graph import named_modules
from fedact.nn.prefix.tiles_graph import Step, Steps
from fedact.nn.prefix.tiles_operations import Streamed
from fedact.nn.prefix.tiles_program import Task
from fedact.nn.streams.arithmetic import Geometry
from fedact.nn.streams.block import Block, is_seen
from fedact.nn.streams.forward_bytes import ForwardBytes
from fedact.nn.streams.install import StreamEntry


def rooms_of(model: nn.Module) -> tuple[tuple[str, int, float], ...]:
    """Return the first modules of a model's blocks in streams, by name, with the bytes for their wide maps and the spare."""
    entries = [(name, module.stream) for name, module in named_modules(model) if isinstance(module, StreamEntry)]
    return tuple((name, block.room, block.spare.frozen) for name, block in entries)


def with_streams(model: nn.Module, steps: Steps, dtype: torch.dtype) -> Steps:
    """Return the steps with one in place of every block that runs in streams on tensors of this type."""
    blocks: dict[Any, str] = {model.get_submodule(name).stream: name for name, *_ in rooms_of(model)}
    made, place = list[Step](), 0
    while place < len(steps.steps):
        block = _block_of(model, steps.steps[place])
        run: list[Step] = []
        if block is not None and _may_run(block, dtype):
            run = _run_of(model, steps.steps[place:], block)
        made.append(_streamed(steps, run, block, blocks[block]) if block is not None and run else steps.steps[place])
        place += max(1, len(run))
    return replace(steps, steps=tuple(made))


def _block_of(model: nn.Module, step: Step) -> Block | None:
    """Return the block in streams that has the module of a step, None where none has."""
    if step.node.op != "call_module":
        return None
    return vars(model.get_submodule(str(step.node.target))).get("stream")


def _may_run(block: Block, dtype: torch.dtype) -> bool:
    """Tell whether a frozen inverted residual may be one step: no hook sees its inside, and all of it is of one type."""
    if not isinstance(block.geometry, Geometry):
        return False
    alike = all(tensor is None or tensor.dtype == dtype for tensor in block.tensors)
    return alike and not any(map(is_seen, block.inside))


def _run_of(model: nn.Module, steps: Sequence[Step], block: Block) -> list[Step]:
    """Return the steps at the beginning that are this block's; empty where they are not all of it, one after the other."""
    run, modules = list[Step](), 0
    for step in steps:
        follows = not run or step.inputs == (run[-1].output,)
        modules += 1 + len(step.then)
        if step.operation is None or not follows:
            return []
        run.append(step)
        if modules >= len(block.modules):
            # Maps behind the block are joined to its last step.
            return run
        if _block_of(model, step) is not block:
            return []
    return []


def _streamed(steps: Steps, run: Sequence[Step], block: Block, entry: str) -> Step:
    """Return a block's steps as one."""
    first, last = run[0], run[-1]
    tensors = [None if tensor is None else torch.empty_like(tensor, device="meta") for tensor in block.tensors]
    shapes = steps.shape(first.inputs[0]), steps.shape(last.output)
    surplus = sum(1 + len(step.then) for step in run) - len(block.modules)
    assert isinstance(block.geometry, Geometry)
    operation = Streamed(entry, block.room, ForwardBytes(block.geometry, tensors, *shapes, block.spare.frozen))
    return replace(last, operation=operation, inputs=first.inputs, then=last.then[len(last.then) - surplus :])


def without_spare(tasks: Iterable[Task]) -> tuple[Task, ...]:
    """Return tasks whose blocks in streams take no more than their room."""

    def bounded(task: Task) -> Task:
        if not isinstance(task.step.operation, Streamed):
            return task
        return replace(task, step=replace(task.step, operation=replace(task.step.operation, has_spare=False)))

    return tuple(map(bounded, tasks))


def with_layouts(tasks: Iterable[Task], given: Mapping[int, bool]) -> tuple[Task, ...]:
    """Return tasks that know whether what streams read has its channels last in memory; given: of the first values."""
    layouts, known = dict(given), list[Task]()
    for task in tasks:
        inputs = task.step.inputs
        last = layouts.get(inputs[task.overwrites or 0], False) if inputs else False
        if isinstance(task.step.operation, Streamed):
            known.append(replace(task, channels_last=last))
            layouts[task.step.output] = True
        else:
            known.append(task)
            layouts[task.step.output] = last
    return tuple(known)
