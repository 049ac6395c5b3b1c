"""The gradient and the operations of the step whose memory is measured, so that it need not be run again."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from fedact.compression import Method
from fedact.measure.cost import FlopCounter
from fedact.nn.layers.base import has_weights
from fedact.nn.prefix.graph import starts_suffix
from fedact.planner.sensitivity import weight_gradients
from fedact.torch_private import blind


class ObservedStep:
    """Sees a step under the ledger: its weight gradients before they are clipped, and its floating-point operations.

    gradients: by trained layer, divided as the whole batch's are; empty where none could be seen. flops: of the micro-batch,
    from the first trained layer on. leaves_state: whether the next step begins where this one ended.
    """

    def __init__(self, methods: Mapping[str, Method]) -> None:
        self.methods, self.flops = methods, 0
        # What starts from a state, or stores more than it does as a rule, takes another step.
        self.observes = not any(
            method.traits.reads_state or method.traits.calibrated or method.ceiling != method for method in methods.values()
        )
        self.gradients: dict[str, Tensor] = {}
        self.leaves_state = False

    @contextmanager
    def counting(self, model: nn.Module) -> Iterator[None]:
        """Count the operations of the step that runs inside."""
        before: list[int] = []
        with ExitStack() as hooks, FlopCounter() as counter:
            for module in model.modules() if self.observes else ():
                if starts_suffix(module):
                    hooks.callback(
                        module.register_forward_pre_hook(blind(lambda *_: before.append(counter.total)), prepend=True).remove
                    )
            yield
        self.flops = counter.total - before[0] if before else 0

    def note_gradients(self, model: nn.Module) -> None:
        """Keep the gradients, in memory that no ledger sees."""
        if not self.observes:
            return
        found = weight_gradients(model, [name for name in self.methods if has_weights(model.get_submodule(name))])
        if all(g.device.type == "cpu" and g.dtype in (torch.float32, torch.float64) for g in found.values()):
            self.gradients = {name: torch.from_numpy(g.numpy().copy()) for name, g in found.items()}
