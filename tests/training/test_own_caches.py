"""What is kept between runs never takes one file of the user's for another."""

from fedact.simulate import main
from tests.support.own_code import FLEET, flags, own_files
from tests.support.runs import rows, timeless

NETWORK = """
import torch
from torch import nn

class Body(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)

    def forward(self, x):
        return POWER(self.conv(x))

def build(classes):
    return nn.Sequential(Body(), nn.Conv2d(6, 6, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, classes))
"""


def test_two_networks_of_the_same_tensors_are_pretrained_and_cached_apart(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDACT_CACHE", str(tmp_path / "cache"))
    _, data = own_files(tmp_path)
    text, found, starts = f"{tmp_path}/mynet.py:build", [], []
    for power in ("torch.relu", "torch.square"):
        (tmp_path / "mynet.py").write_text(NETWORK.replace("POWER", power))
        settings = {
            **FLEET,
            "weights": "pretrain",
            "pretrain_epochs": 1,
            "model": text,
            "dataset": data,
            "method": ["exact"],
        }
        assert main([*flags(settings), "--out", str(tmp_path / power)]) == 0
        assert main([*flags({**settings, "cache_size": "none"}), "--out", str(tmp_path / f"{power}-uncached")]) == 0
        assert timeless(tmp_path / power) == timeless(tmp_path / f"{power}-uncached")
        found.append(len(list((tmp_path / "cache" / "pretrained").glob("*.safetensors"))))
        starts.append(rows(tmp_path / power)[0]["start_digest"])
    assert found == [1, 2]
    assert starts[0] != starts[1]


def test_two_networks_that_differ_in_a_module_of_their_own_have_two_prefix_caches(tmp_path, monkeypatch):
    """Frozen, from the same weights: without the file's digest one would be given the other's outputs."""
    monkeypatch.setenv("FEDACT_CACHE", str(tmp_path / "cache"))
    _, data = own_files(tmp_path)
    for power in ("torch.relu", "torch.square"):
        (tmp_path / "mynet.py").write_text(NETWORK.replace("POWER", power))
        settings = {**FLEET, "layers": 0, "model": f"{tmp_path}/mynet.py:build", "dataset": data, "method": ["exact"]}
        assert main([*flags(settings), "--out", str(tmp_path / power)]) == 0
    first, second = (timeless(tmp_path / power) for power in ("torch.relu", "torch.square"))
    assert [row.get("loss") for row in first] != [row.get("loss") for row in second]
    folders = {path.parent for path in (tmp_path / "cache" / "prefix").rglob("*") if path.is_file()}
    assert len(folders) >= 4
