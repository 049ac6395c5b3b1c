"""Processor seconds of plans for MobileNetV2, one thread, in a process that has imported everything.

python benchmarks/plan_seconds.py DATA           prints them by case; DATA has cifar10.npz and the ImageNet weights
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from runs import IMAGENET
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from speed import PLANS
from torch import Tensor, nn
from torchvision.models import mobilenet_v2

import fedact

BATCH, LAYERS = 32, 52


def network(weights: Path) -> nn.Module:
    """Return MobileNetV2 1.0 with ImageNet weights, and a head for ten classes."""
    model = mobilenet_v2()
    model.load_state_dict(load_file(weights))
    model.classifier[1] = nn.Linear(model.last_channel, 10)
    return model


def examples(name: str, data: Path) -> tuple[Tensor, Tensor]:
    """Return a batch of CIFAR-10 at 224 px, or of the handwritten digits at 32 px."""
    if name == "digits":
        digits = load_digits()
        x, labels, side = np.repeat(digits.images[:BATCH, None] / 16, 3, axis=1), digits.target[:BATCH], 32
    else:
        with np.load(data / "cifar10.npz") as arrays:
            x, labels, side = arrays["x_train"][:BATCH].transpose(0, 3, 1, 2) / 255, arrays["y_train"][:BATCH], 224
    images = F.interpolate(torch.tensor(x, dtype=torch.float32), size=(side, side), mode="bilinear")
    return (images - 0.45) / 0.225, torch.tensor(labels).long().flatten()


def main() -> int:
    """Make every plan once and print the seconds as JSON."""
    data = Path(sys.argv[1])
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, seconds = network(data / IMAGENET), dict[str, float]()
    # The first plan also imports what the others find loaded.
    fedact.make_plan(model, "512KB", examples("digits", data), "hosvd", 2)
    for name, (_, methods, budgets) in PLANS.items():
        example = examples(name, data)
        for method in methods:
            for scope, budget in budgets:
                begin = time.process_time()
                fedact.make_plan(model, budget, example, method, LAYERS, scope)
                seconds[f"{name}, {method}, {budget} {scope}"] = time.process_time() - begin
    print(json.dumps(seconds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
