"""Ten classes of ImageNet as they lie on disk, and a network that has learned all thousand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import datasets
from torchvision.transforms import v2

from fedact.data import DATASETS, Examples, Loader, Request, decode_files
from fedact.models import make_model
from fedact.models.weights import from_file, load_into

WNIDS = ("n01440764", "n02102040", "n02979186", "n03000684", "n03028079", "n03394916", "n03417042", "n03425413", "n03445777",
         "n03888257")  # fmt: skip
PLACES = (0, 217, 482, 491, 497, 566, 569, 571, 574, 701)
"""The ten among ImageNet's thousand classes, whose order is that of the wnids."""
SIDE = 160


def accuracy(examples: Examples, weights_file: Path) -> float:
    """Return how often a MobileNetV2 with ImageNet weights takes the right one of the ten classes."""
    weights = from_file(weights_file, SIDE)
    model = make_model("mobilenet_v2", 1000).eval()
    load_into(model, weights.tensors, str(weights_file))
    loader = Loader(examples, weights.preprocessing)
    parts = np.array_split(np.arange(len(examples)), -(-len(examples) // 25))
    with torch.inference_mode():
        found = torch.cat([model(loader(part)[0])[:, PLACES].argmax(1) for part in parts])
    return float((found == torch.from_numpy(examples.labels)).float().mean())


def val(development_data: Path, cache: Path, every: int) -> Examples:
    request = Request(development_data / "imagenette", None, None, np.random.default_rng(0), SIDE)
    source = DATASETS["imagenet"](request)
    assert (source.names, len(source.train), len(source.test)) == (WNIDS, 2500, 1000)
    nothing, some = source.train.subset(np.arange(0)), source.test.subset(np.arange(0, 1000, every))
    return decode_files(replace(source, train=nothing, test=some), cache).test


def test_a_network_that_learned_imagenet_knows_its_pictures(development_data, tmp_path):
    some = val(development_data, tmp_path, every=20)
    assert accuracy(some, development_data / "weights" / "mobilenet_v2-imagenet.safetensors") > 0.9


@pytest.mark.exhaustive
def test_all_of_val_is_decoded_as_torchvision_decodes_it_and_known(development_data, tmp_path):
    test = val(development_data, tmp_path, every=1)
    theirs = datasets.ImageFolder(
        development_data / "imagenette" / "val", v2.Compose([v2.Resize(SIDE), v2.CenterCrop(SIDE)])
    )
    assert test.labels.tolist() == theirs.targets
    for row, (picture, _) in enumerate(theirs):
        assert np.abs(test.images[[row]][0].astype(int) - np.asarray(picture)).max() <= 1
    assert accuracy(test, development_data / "weights" / "mobilenet_v2-imagenet.safetensors") > 0.9
