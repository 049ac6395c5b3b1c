"""What a budget buys on MobileNetV2 with ImageNet weights and CIFAR-10 images at 224 px: bytes, depth, gradients."""

from bisect import bisect_left
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import fedact
from fedact.config.plan import Plan
from fedact.measure.step import parts
from fedact.models import mobilenet_v2
from fedact.models.micro_batch import add_gradient
from fedact.models.weights import from_file, load_into
from fedact.nn.surgery import trained_parameters

PUBLISHED = ("vanilla", "hosvd:variance=0.8", "asi:variance=0.8", "svd:variance=0.8", "gradient_filter", "quantize")
DEPTHS = (52, 40, 32, 24, 16, 12, 8, 6, 4, 3, 2, 1, 0)


def model_and_batches(data, size: int):
    """Return the network with a fresh head for ten classes, and two batches: the server's and a client's."""
    torch.manual_seed(0)
    model = mobilenet_v2(10, 1.0, 224)
    load_into(model, from_file(data / "weights" / "mobilenet_v2-imagenet.safetensors", None).tensors, "imagenet")
    with np.load(data / "cifar10.npz") as arrays:
        pixels, labels = arrays["x_train"][: 2 * size], arrays["y_train"][: 2 * size]
    x = F.interpolate(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1, 224, mode="bilinear")
    x, y = x.contiguous(memory_format=torch.channels_last), torch.from_numpy(labels.astype(np.int64))
    model.to(memory_format=torch.channels_last).eval()
    return model, (x[:size], y[:size]), (x[size:], y[size:])


def gradients(model, batch, micro_batch):
    for part in parts(batch, micro_batch):
        add_gradient(model, *part, len(batch[1]))
    found = {name: p.grad.clone() for name, p in trained_parameters(model).items() if name.endswith("weight")}
    model.zero_grad()
    return found


def cosines(model, plan: Plan, batch) -> dict[str, float]:
    """Return each trained weight's gradient cosine under the plan with plain training's."""
    ours = gradients(fedact.apply(model, plan), batch, plan.micro_batch)
    exact = gradients(fedact.compress(model, "exact", layers=plan.layers), batch, 1)
    return {name: float(F.cosine_similarity(ours[name].flatten(), g.flatten(), dim=0)) for name, g in exact.items()}


def held(model, plan: Plan, batch) -> int:
    """Return the most that a whole step under the plan saves."""
    x, y = (each[: plan.micro_batch].clone() for each in batch)
    with fedact.measure_memory(fedact.apply(model, plan), inputs=(x, y)) as memory:
        add_gradient(model, x, y, plan.batch_size)
    model.zero_grad()
    return memory.saved_bytes


@pytest.mark.exhaustive
def test_four_layers_in_128_000_bytes_with_nearly_the_exact_gradient(development_data):
    model, server, client = model_and_batches(development_data, 32)
    plan = fedact.make_plan(model, 128_000, server, "auto", 4, "saved")
    assert (plan.layers, plan.batch_size, plan.status) == (4, 32, "ok")
    assert held(model, plan, client) == plan.saved_bytes <= 128_000
    found = cosines(model, plan, client)
    print(plan.saved_bytes, plan.micro_batch, f"lowest cosine {min(found.values()):.4f}")
    assert min(found.values()) >= 0.99


@pytest.mark.exhaustive
def test_every_layer_in_512_000_bytes(development_data):
    model, server, client = model_and_batches(development_data, 8)
    plan = fedact.make_plan(model, 512_000, server, "auto", 52, "saved")
    assert plan.layers == 52
    assert held(model, plan, client) == plan.saved_bytes <= 512_000
    found = cosines(model, plan, client)
    print(f"auto: 52 layers, {plan.saved_bytes:,} bytes, lowest cosine {min(found.values()):.4f}")
    assert min(found.values()) >= 0.95


@pytest.mark.exhaustive
@pytest.mark.parametrize("method", PUBLISHED)
def test_no_published_method_gets_anywhere_near(development_data, method):
    """Nor any micro-batch of plain training: the table of the README."""
    model, server, client = model_and_batches(development_data, 8)
    other = deepest(model, server, method)
    lowest = min(cosines(model, other, client).values())
    print(f"{method}: {other.layers} layers, {other.saved_bytes:,} bytes, lowest cosine {lowest:.4f}")
    assert other.layers < 52 or lowest < 0.95


def deepest(model, example, method: str) -> Plan:
    """Return the plan with the most layers that a method has in 512,000 bytes."""
    at = cache(lambda depth: fedact.make_plan(model, 512_000, example, method, depth, "saved"))

    def fits(depth: int) -> bool:
        return at(depth).status != "skipped" and at(depth).layers == depth

    # Fewer layers never hold more.
    return at(DEPTHS[bisect_left(DEPTHS, True, key=fits)])
