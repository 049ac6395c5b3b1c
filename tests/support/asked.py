"""A plan that is asked for, and real training under it: no step is over the plan's bytes."""

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import mobilenet_v2, mobilenet_v3_small
from torchvision.models.resnet import BasicBlock, ResNet

import fedact
from fedact.compression import make_method
from fedact.config.plan import Plan
from fedact.measure.memory import Memory, maximum_memory, measure_memory
from fedact.measure.step import parts
from fedact.models.sgd import Sgd
from fedact.nn.surgery import (
    calibrate,
    load_states,
    states,
    trained_parameters,
)
from fedact.training.local import micro_step
from tests.support.laws import INPUTS
from tests.support.networks import Residual, normed
from tests.support.planned import Net, in_scope


def small_resnet() -> nn.Module:
    model = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=4)
    # Autograd keeps what max pooling needs, and the library warns of it.
    model.maxpool = nn.Identity()
    return model


MODELS = {
    "net": (Net, range(6, 25)),
    "normed": (normed, range(6, 25)),
    "residual": (Residual, range(6, 25)),
    "mobilenet_v2": (partial(mobilenet_v2, width_mult=0.1, num_classes=4), range(32, 49, 8)),
    "mobilenet_v3": (partial(mobilenet_v3_small, width_mult=0.1, num_classes=4), range(32, 49, 8)),
    "resnet": (small_resnet, range(16, 25)),
}
"""Each with the resolutions that it is asked for at."""


@dataclass(frozen=True)
class Case:
    """What a plan is asked for, and the seed of all that is random in it."""

    seed: int
    model: str
    batch: int
    resolution: int
    budget: int
    method: str
    scope: str
    layers: int | str
    momentum: bool

    def network(self) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            return MODELS[self.model][0]().train()

    def data(self, size: int, seed: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(1_000 * self.seed + seed)
        kind = INPUTS[sorted(INPUTS)[(self.seed + seed) % len(INPUTS)]] if seed else INPUTS["gaussian"]
        x = kind((size, 3, self.resolution, self.resolution), generator)
        return x, torch.randint(0, 4, (size,), generator=generator)

    def plan(self, **changed) -> Plan:
        given = {"budget": self.budget, "layers": self.layers, "method": self.method} | changed
        example = self.data(self.batch, 0)
        return fedact.make_plan(self.network(), example=example, scope=self.scope, momentum=self.momentum, **given)


def client_of(asked: Case, plan: Plan) -> nn.Module:
    """Return the network under the plan, with the states that a server finds for methods that are calibrated."""
    model = fedact.apply(asked.network(), plan)
    if any(make_method(kept.method).traits.calibrated for kept in plan.kept):
        server = calibrate(fedact.apply(asked.network(), plan), asked.data(asked.batch, 0)[0])
        load_states(model, plan, states(server))
    return model


def trained(asked: Case, plan: Plan) -> Memory:
    """Return the most that any step of two rounds of training on other data holds.

    Each ends with a batch of one full micro-batch, and one of fewer examples.
    """
    model, memories = client_of(asked, plan), []
    optimizer = Sgd(list(trained_parameters(model).values()), 0.01, 0.9 * asked.momentum, 1e-4)
    sizes = [asked.batch, plan.micro_batch, 1 + asked.seed % plan.micro_batch]
    for number, size in enumerate(2 * sizes, start=1):
        micro_batches = list(parts(asked.data(size, number), plan.micro_batch))
        for place, (x, y) in enumerate(micro_batches, start=1):
            last = optimizer if place == len(micro_batches) else None
            with measure_memory(model, inputs=(x, y), optimizer=optimizer) as memory:
                micro_step(model, x, y, size, F.cross_entropy, last, clip_norm=1.0)
            memories.append(memory)
        optimizer.zero_grad()
    return maximum_memory(memories)


def check_bytes(asked: Case, plan: Plan) -> None:
    measured, methods = trained(asked, plan), [make_method(kept.method) for kept in plan.kept]
    assert in_scope(measured, asked.scope) <= in_scope(plan, asked.scope) <= asked.budget
    assert measured.saved_bytes <= plan.saved_bytes
    assert measured.hidden_bytes == 0
    if all(method.fixed_size for method in methods):
        assert (measured.saved_bytes, measured.state_bytes) == (plan.saved_bytes, plan.state_bytes)
        assert measured.paper_bytes == plan.paper_bytes
    if all(method.fixed_size and method.traits.fixed_workspace for method in methods):
        assert measured.peak_bytes == plan.peak_bytes
