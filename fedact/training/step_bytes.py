"""Bytes of a client's steps: the ledger's on the first of a shape and on a sample, the codecs' own count on every other."""

from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

from torch import Tensor, nn

from fedact.config.errors import BudgetError
from fedact.config.plan import Plan
from fedact.measure.memory import Memory, Stateful, measure_memory
from fedact.measure.timeline import Timeline
from fedact.models.micro_batch import Inputs
from fedact.nn.layers import LayerCodec
from fedact.nn.layers.stored_sizes import StoredSizes
from fedact.training.frozen_prefix import BatchOutputs


@dataclass(frozen=True, eq=False)
class MeasuredStep:
    """A step that the ledger followed; prefix_bytes: the peak of the frozen prefix's own run, without the methods' state."""

    memory: Memory
    timeline: Timeline
    prefix_bytes: int


Shape = tuple[int, bool, bool]
"""A micro-step's number of examples, whether it is the batch's last, and whether methods had a state."""
Measured = dict[Plan, dict[Shape, MeasuredStep]]
"""The first measured step of every shape, by plan."""


@dataclass(eq=False)
class StepBytes:
    """The bytes of one client's steps under a plan; every step runs in ``step``.

    measured: what this process measured, which is extended. audited: numbers of steps that the ledger follows though their
    shape was measured, and that ``memories`` has the ledger's peak of. codecs: the model's by layer, None to find them.
    memories: of the steps so far; which of them, and of other clients', were measured changes none of their figures.
    """

    model: nn.Module
    plan: Plan
    optimizer: Stateful
    measured: Measured
    audited: Container[int]
    codecs: Mapping[str, LayerCodec] | None = None
    memories: list[Memory] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self.stored = StoredSizes(self.model, codecs=self.codecs)
        self.known = self.measured.setdefault(self.plan, {})

    @contextmanager
    def step(self, x: Inputs, y: Tensor, last: bool) -> Iterator[Callable[[], None]]:
        """Note the bytes of the micro-step in the block; raises BudgetError where they exceed the budget.

        last: whether it ends its batch. Yields a function to call before weights are changed: it raises then already.
        """
        # A method's first step has no state to start from, and may hold other bytes than later ones.
        shape = (len(y), last, any(codec.states for codec in self.stored.codecs.values()))
        known, number = self.known.get(shape), len(self.memories)
        if known is None or number in self.audited:
            with self._followed(x, y, shape, audited=number in self.audited):
                yield lambda: None
        elif not known.timeline.calls:
            yield lambda: None
            self.memories.append(known.memory)
        else:
            with self.stored:
                yield partial(self._count, known, number)
            self._count(known, number)

    def _count(self, known: MeasuredStep, number: int) -> None:
        """Note what was counted in this step, unless that was done; raises BudgetError over the budget."""
        if len(self.memories) == number:
            self.memories.append(self._counted(known))

    @contextmanager
    def _followed(self, x: Inputs, y: Tensor, shape: Shape, audited: bool) -> Iterator[None]:
        """Let the ledger follow the step in the block, and note what was counted."""
        with self.stored, measure_memory(self.model, (x, y), self.optimizer, self.stored) as memory:
            yield
        assert memory.timeline is not None
        prefix = x.peak_bytes() if isinstance(x, BatchOutputs) else 0
        memory.peak_bytes = max(memory.peak_bytes, prefix + memory.state_bytes)
        known = self.known.setdefault(shape, MeasuredStep(memory, memory.timeline, prefix))
        counted = self._compared(within_budget(memory, self.plan), self._counted(known))
        if audited:
            counted = replace(counted, peak_bytes=max(counted.peak_bytes, memory.peak_bytes))
        self.memories.append(counted)

    def _counted(self, known: MeasuredStep) -> Memory:
        """Return the memory of the step that just ran, from what its codecs stored; raises BudgetError over the budget."""
        timeline, stored, plan = known.timeline, self.stored, self.plan
        if (stored.calls, len(stored.sizes)) != (list(timeline.calls), len(timeline.slots)):
            raise BudgetError("a step saved the inputs of other layers than the step of its shape that was measured")
        if not timeline.calls:
            return known.memory
        stored.end_step()
        saved = timeline.saved_bytes(stored.sizes) + stored.state_bytes
        least = max(saved, known.prefix_bytes + stored.state_bytes)
        peak = max(least, timeline.peak_bytes(stored.sizes, plan.working_bytes))
        if plan.scope == "peak" and plan.peak_bytes is not None and peak > plan.peak_bytes:
            # No step takes more than the worst cases that the plan was measured on, but for what is known of it.
            peak = max(least, timeline.peak_bytes(stored.sizes, 0), plan.peak_bytes)
        return within_budget(Memory(saved, stored.state_bytes, peak, timeline.paper_bytes(stored.paper)), plan)

    def _compared(self, ledger: Memory, counted: Memory) -> Memory:
        """Return what was counted; raises BudgetError where the ledger has other bytes."""
        for name in ("saved", "state", "paper"):
            one, other = (getattr(memory, f"{name}_bytes") for memory in (ledger, counted))
            if one != other:
                raise BudgetError(f"ledger and count disagree: {one:,} {name} bytes are measured, {other:,} are counted")
        return counted


def bytes_in_scope(memory: Memory, scope: str) -> int:
    """Return the bytes that a budget of this scope limits: saved bytes for "saved", else peak bytes."""
    return memory.saved_bytes if scope == "saved" else memory.peak_bytes


def within_budget(memory: Memory, plan: Plan) -> Memory:
    """Return the memory; raise BudgetError where it exceeds the plan's budget, or has bytes that no hook recorded."""
    held = bytes_in_scope(memory, plan.scope)
    if plan.budget_bytes is not None and held > plan.budget_bytes:
        raise BudgetError(f"a step held {held:,} {plan.scope} bytes, over the budget of {plan.budget_bytes:,}")
    if memory.hidden_bytes:
        raise BudgetError(f"ledger and hooks disagree: {memory.hidden_bytes:,} bytes are held out of autograd's sight")
    return memory
