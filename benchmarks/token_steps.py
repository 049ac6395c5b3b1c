"""Seconds of each method's step on networks of tokens and of series, of plain training's: the table of docs/speed.md.

python benchmarks/token_steps.py DATA [MODEL ...]    prints it, processor seconds of one thread; DATA has cifar10.npz
"""

import sys
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedact.data.examples import Request
from fedact.data.readers import motion
from fedact.measure.cost import time_ratios, time_steps
from fedact.measure.methods import BASELINE, compressed_models
from fedact.models import SERIES_MODELS, make_model

MODELS = {"vit_tiny": 16, "swin_t": 16, "temporal_resnet": 8}
"""Trained layers, from the end."""
METHODS = (
    "exact", "checkpoint", "hosvd:variance=0.8", "hosvd:variance=0.95", "svd:variance=0.8", "asi", "lance", "quantize",
    "division", "topk", "random_projection", "transform", "gradient_filter",
)  # fmt: skip
BATCH, STEPS, SIDE = 16, 3, 64
COUNT = BATCH * (STEPS + 1)


def examples(model: str, data: Path) -> tuple[Tensor, Tensor]:
    """Return examples: windows of made series, or CIFAR-10 at 64 px."""
    if model in SERIES_MODELS:
        made = motion.load(Request(data, COUNT, 1, np.random.default_rng(0))).train
        x, labels = torch.from_numpy(np.stack([made.images[place] for place in range(COUNT)])).float(), made.labels
        return (x - x.mean((0, 2), keepdim=True)) / x.std((0, 2), keepdim=True), torch.tensor(labels[:COUNT])
    with np.load(data / "cifar10.npz") as arrays:
        pixels, labels = arrays["x_train"][:COUNT].transpose(0, 3, 1, 2) / 255, arrays["y_train"][:COUNT]
    images = F.interpolate(torch.tensor(pixels, dtype=torch.float32), SIDE, mode="bilinear")
    return (images - 0.45) / 0.225, torch.tensor(labels).long().flatten()


def ratios(model: str, data: Path) -> dict[str, float]:
    """Return each method's median time of plain training's, from the first trained layer on; weights are random."""
    torch.manual_seed(0)
    x, y = examples(model, data)
    network = make_model(model, int(y.max()) + 1, resolution=SIDE, channels=x.shape[1])
    # torchvision's transformers start with a head of zeros, which sends back no gradient.
    nn.init.normal_([module for module in network.modules() if isinstance(module, nn.Linear)][-1].weight, std=0.05)
    models = compressed_models(network, [BASELINE, *METHODS], MODELS[model], train_norm=False)
    warm_up, *batches = zip(x.split(BATCH), y.split(BATCH), strict=True)
    rows = time_steps(models, warm_up, batches, time.process_time)
    return {name: median(time_ratios(rows, name, BASELINE)) for name in METHODS}


def main() -> int:
    """Print the table, a column a network."""
    torch.set_num_threads(1)
    data, names = Path(sys.argv[1]), sys.argv[2:] or list(MODELS)
    columns = [ratios(name, data) for name in names]
    print("| method |", " | ".join(f"{name}, {MODELS[name]} layers" for name in names), "|")
    print("|", " | ".join(["---"] * (1 + len(names))), "|")
    for method in METHODS:
        print(f"| `{method}` |", " | ".join(f"{column[method]:.2f}" for column in columns), "|")
    return 0


if __name__ == "__main__":
    sys.exit(main())
