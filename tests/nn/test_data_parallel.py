"""``DistributedDataParallel``: its hooks on gradients see every gradient, so that processes agree on plain autograd's."""

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

import fedact
from tests.support.inverted_residuals import assert_close, batch, plain_gradients, small

PROCESSES = 2
CASES = [{}, {"room": 2000}, {"room": 2000, "recompute": 6}, {"recompute": 2}]


def network():
    torch.manual_seed(0)
    return small().double(), batch(4)


def _train(rank, folder):
    store = dist.FileStore(f"{folder}/store", PROCESSES)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=PROCESSES)
    try:
        for place, case in enumerate(CASES):
            (model, (x, y)), mine = network(), slice(2 * rank, 2 * rank + 2)
            parallel = DistributedDataParallel(fedact.compress(model, "exact", layers=12, **case))
            # Twice: the second adds to gradients that are there.
            for _ in range(2):
                F.cross_entropy(parallel(x[mine]), y[mine]).backward()
            found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
            torch.save(found, f"{folder}/{place}.{rank}")
    finally:
        dist.destroy_process_group()


def test_processes_agree_on_the_gradient_of_all_examples(tmp_path):
    mp.spawn(_train, (str(tmp_path),), nprocs=PROCESSES)
    model, (x, y) = network()
    want = plain_gradients(model, x, y, 12)
    for place in range(len(CASES)):
        for rank in range(PROCESSES):
            found = torch.load(tmp_path / f"{place}.{rank}", weights_only=True)
            assert_close({name: gradient / 2 for name, gradient in found.items()}, want)
