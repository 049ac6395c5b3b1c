"""SGD in one pass: torch's own optimizer after torch's own clipping is the oracle, in every type of weights."""

import pytest
import torch
from torch import nn

from fedact.models.sgd import Sgd

HALF, BRAIN, SINGLE, DOUBLE = torch.float16, torch.bfloat16, torch.float32, torch.float64


@pytest.mark.parametrize("clip_norm", [0.5, 1e3])
@pytest.mark.parametrize("dtypes", [(HALF, HALF), (BRAIN, BRAIN), (SINGLE, SINGLE), (DOUBLE, DOUBLE), (BRAIN, SINGLE)])
def test_clipping_and_update_are_torchs(dtypes, clip_norm):
    generator = torch.Generator().manual_seed(0)
    weights = [
        torch.randn(shape, generator=generator).to(dtype) for shape, dtype in zip([(5, 7), (30,)], dtypes, strict=True)
    ]
    mine, theirs = ([nn.Parameter(weight.clone()) for weight in weights] for _ in range(2))
    sgd, oracle = Sgd(mine, 0.1, 0.9, 1e-2), torch.optim.SGD(theirs, 0.1, 0.9, weight_decay=1e-2)
    for _ in range(3):
        for one, other in zip(mine, theirs, strict=True):
            one.grad = torch.randn(one.shape, generator=generator).to(one.dtype)
            other.grad = one.grad.clone()
        sgd.step(clip_norm)
        nn.utils.clip_grad_norm_(theirs, clip_norm)
        oracle.step()
    for one, other in zip(mine, theirs, strict=True):
        assert one.dtype == other.dtype
        # A few roundings of the type; torch's clipping adds 1e-6 to the norm.
        assert (one - other).norm() <= max(4 * torch.finfo(one.dtype).eps, 1e-6) * other.norm()
