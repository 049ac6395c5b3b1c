from urllib.error import URLError

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from fedact.config.errors import ConfigError
from fedact.models import to_model_layout
from fedact.models.weights import from_file, from_torchvision, load_into, plain_preprocessing


def network(classes: int = 3, channels: int = 4) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, channels, 3), nn.BatchNorm2d(channels), nn.Flatten(), nn.Linear(channels, classes))


def saved(file, metadata=None, model=None):
    tensors = (model or network()).state_dict()
    if file.suffix == ".safetensors":
        save_file(tensors, file, metadata)
    else:
        torch.save(tensors, file)
    return file


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "w.pt"])
def test_a_file_gives_back_its_tensors(tmp_path, name):
    model = network()
    weights = from_file(saved(tmp_path / name, model=model), None)
    assert weights.tensors.keys() == model.state_dict().keys()
    assert all(torch.equal(weights.tensors[key], tensor) for key, tensor in model.state_dict().items())


def test_metadata_says_mean_std_and_resolution(tmp_path):
    metadata = {"mean": "[0.1, 0.2, 0.3]", "std": "0.4, 0.5, 0.6", "resolution": "48"}
    preprocessing = from_file(saved(tmp_path / "w.safetensors", metadata), None).preprocessing
    assert (preprocessing.mean, preprocessing.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert preprocessing.resolution == preprocessing.resize == 48


def test_a_given_resolution_comes_before_the_files(tmp_path):
    assert from_file(saved(tmp_path / "w.safetensors", {"resolution": "48"}), 32).preprocessing.resolution == 32


def test_without_metadata_pixels_go_from_minus_one_to_one_at_224(tmp_path):
    assert from_file(saved(tmp_path / "w.pth"), None).preprocessing == plain_preprocessing(224)


@pytest.mark.parametrize(
    "metadata",
    [
        {"mean": ""}, {"mean": "[]"}, {"mean": "null"}, {"mean": "bright"}, {"mean": "[0.5, 0.5]"}, {"mean": "[NaN, 0, 0]"},
        {"mean": "[[0.5, 0.5, 0.5]]"}, {"std": "[0, 1, 1]"}, {"std": "[-1, 1, 1]"}, {"std": "[Infinity, 1, 1]"},
        {"resolution": ""}, {"resolution": "0"}, {"resolution": "-8"}, {"resolution": "Infinity"}, {"resolution": "NaN"},
        {"resolution": "[]"}, {"resolution": "large"}, {"resolution": "48.5"}, {"resolution": "1000000"},
    ],
    ids=str,
)  # fmt: skip
def test_metadata_without_a_meaning_is_refused(tmp_path, metadata):
    with pytest.raises(ConfigError, match=r"w\.safetensors"):
        from_file(saved(tmp_path / "w.safetensors", metadata), None)


class Payload:
    def __reduce__(self):
        return (pytest.fail, ("a pickle ran code",))


@pytest.mark.parametrize(
    "value", [{"a": Payload()}, [torch.zeros(1)], {"epoch": 3}, {"state_dict": {"a": torch.zeros(1)}}, 3, None, network()],
    ids=["code", "list", "number", "nested", "three", "none", "module"],
)  # fmt: skip
def test_a_pth_that_is_no_state_dict_is_refused(tmp_path, value):
    torch.save(value, tmp_path / "w.pth")
    with pytest.raises(ConfigError, match="cannot be read"):
        from_file(tmp_path / "w.pth", None)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_a_missing_file_or_a_folder_is_named(tmp_path, name):
    with pytest.raises(ConfigError, match="no such file"):
        from_file(tmp_path / name, None)
    (tmp_path / name).mkdir()
    with pytest.raises(ConfigError, match="no such file"):
        from_file(tmp_path / name, None)


@given(st.sampled_from(["w.safetensors", "w.pth"]), st.binary(max_size=60))
def test_bytes_that_are_no_weights_are_refused_in_one_line(tmp_path_factory, name, content):
    file = tmp_path_factory.getbasetemp() / name
    file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        from_file(file, None)
    assert "\n" not in str(caught.value)


def test_a_text_is_no_file_of_weights(tmp_path):
    (tmp_path / "w.txt").write_text("see the other file")
    with pytest.raises(ConfigError, match=r"w\.txt cannot be read: it is no file of tensors by name"):
        from_file(tmp_path / "w.txt", None)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.9, 0.99])
def test_a_torn_file_is_refused(tmp_path, name, share):
    content = saved(tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: int(share * len(content))])
    with pytest.raises(ConfigError, match="cannot be read"):
        from_file(tmp_path / name, None)


def test_every_tensor_is_loaded():
    source, target = network(), network()
    load_into(target, source.state_dict(), "w")
    assert all(torch.equal(target.state_dict()[key], tensor) for key, tensor in source.state_dict().items())


def test_a_head_for_other_classes_keeps_the_models_own():
    source, target = network(classes=5), network(classes=3)
    own = {key: tensor.clone() for key, tensor in target.state_dict().items()}
    load_into(target, source.state_dict(), "w")
    after = target.state_dict()
    assert all(torch.equal(after[key], own[key]) for key in ("3.weight", "3.bias"))
    assert all(torch.equal(after[key], source.state_dict()[key]) for key in own if not key.startswith("3."))


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors.pop("0.weight"),
        lambda tensors: tensors.update({"extra": torch.zeros(1)}),
        lambda tensors: tensors.update({"0.weight": torch.zeros(4, 3, 5, 5)}),
        lambda tensors: tensors.update({7: torch.zeros(1), "extra": torch.zeros(1)}),
        lambda tensors: tensors.clear(),
    ],
    ids=["missing", "extra", "misshapen", "numbered", "empty"],
)
def test_weights_of_another_model_are_refused_and_change_nothing(change):
    target, tensors = network(), dict(network().state_dict())
    own = {key: tensor.clone() for key, tensor in target.state_dict().items()}
    change(tensors)
    with pytest.raises(ConfigError, match="another model"):
        load_into(target, tensors, "w")
    assert all(torch.equal(target.state_dict()[key], tensor) for key, tensor in own.items())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused(value):
    tensors = dict(network().state_dict())
    tensors["0.weight"] = tensors["0.weight"].clone().index_fill_(0, torch.tensor([0]), value)
    with pytest.raises(ConfigError, match=r"0\.weight"):
        load_into(network(), tensors, "w")


def test_the_first_strange_tensors_are_named():
    with pytest.raises(ConfigError, match=r"6 tensors do not fit \(a0, a1, a2 \.\.\.\)"):
        load_into(network(), {**network().state_dict(), **{f"a{i}": torch.zeros(1) for i in range(6)}}, "w")


def test_imagenet_weights_without_network_say_what_to_put_where(tmp_path, monkeypatch):
    def fail(*arguments, **settings):
        raise URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", fail)
    with pytest.raises(ConfigError, match=r"put https://.*mobilenet_v2") as caught:
        from_torchvision("mobilenet_v2", None)
    assert str(tmp_path) in str(caught.value)


def test_imagenet_preprocessing_scales_with_the_resolution(monkeypatch):
    monkeypatch.setattr("torchvision.models._api.WeightsEnum.get_state_dict", lambda *arguments, **settings: {})
    at_224, at_112 = (from_torchvision("mobilenet_v2", side).preprocessing for side in (None, 112))
    assert (at_224.resolution, at_224.resize, at_112.resolution, at_112.resize) == (224, 232, 112, 116)
    assert (at_224.mean, at_224.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_a_network_of_ones_own_keeps_names_that_torchvision_has_changed():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = nn.ModuleDict({"mlp": nn.ModuleDict({"linear_1": nn.Linear(2, 2)})})

    own = Own()
    tensors = {name: torch.ones_like(tensor) for name, tensor in own.state_dict().items()}
    assert to_model_layout(own, tensors).keys() == tensors.keys()
