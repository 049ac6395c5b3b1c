"""torchvision's classifiers as fedact trains them: their heads, their bytes, their gradients and their weights."""

import json
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import ConvNeXt, MaxVit, SwinTransformer, VisionTransformer, get_model
from torchvision.models.convnext import CNBlockConfig

import fedact
from fedact.config.errors import ConfigError
from fedact.measure.memory import Memory
from fedact.models import make_model
from fedact.models.classifiers import AUXILIARY, classifier_names
from fedact.models.weights import fill, load_into
from fedact.nn.surgery import body_layers, convolutions, head
from fedact.simulate import main
from fedact.training.local import train_locally
from fedact.training.recipe import Recipe
from tests.support.refusal import refused

CLASSES = 7
SMALL = {
    "vit": lambda: VisionTransformer(32, 8, 2, 2, 32, 64, num_classes=CLASSES),
    "swin": lambda: SwinTransformer([4, 4], 16, [1, 1], [2, 2], [4, 4], num_classes=CLASSES),
    "convnext": lambda: ConvNeXt([CNBlockConfig(16, 32, 1), CNBlockConfig(32, None, 1)], num_classes=CLASSES),
    "maxvit": lambda: MaxVit((56, 56), 16, 7, [16, 32], [1, 1], 8, 0.1, num_classes=CLASSES),
    "mcunet": lambda: make_model("mcunet", CLASSES),
    "squeezenet1_1": lambda: make_model("squeezenet1_1", CLASSES),
    "shufflenet_v2_x0_5": lambda: make_model("shufflenet_v2_x0_5", CLASSES),
    "mnasnet0_5": lambda: make_model("mnasnet0_5", CLASSES),
}
"""The transformers' own code in small, and the smallest of the others."""
FAMILIES = {
    "resnet18": 32, "resnext50_32x4d": 32, "wide_resnet50_2": 32, "regnet_x_400mf": 32, "regnet_y_400mf": 32,
    "mobilenet_v2": 32, "mobilenet_v3_small": 32, "mobilenet_v3_large": 32, "efficientnet_b0": 32, "efficientnet_v2_s": 32,
    "densenet121": 32, "googlenet": 32, "inception_v3": 75, "alexnet": 64, "vgg11": 32, "vgg11_bn": 32, "convnext_tiny": 32,
    "swin_t": 32, "swin_v2_t": 32, "vit_b_32": 224, "maxvit_t": 224, "squeezenet1_0": 32, "shufflenet_v2_x1_0": 32,
    "mnasnet1_0": 32,
}  # fmt: skip
"""One of every family, and the smallest images that it takes, or nearly."""
SIDES = {"maxvit": 56}


def batch(side: int, examples: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(examples, 3, side, side, generator=generator), torch.arange(examples) % CLASSES


def step(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> Memory:
    with fedact.measure_memory(model, inputs=(x, y)) as memory:
        F.cross_entropy(model(x), y).backward()
    return memory


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}


def check_a_step(model: nn.Module, side: int, methods: tuple[str, ...]) -> None:
    """Ledger and hooks agree, everything trained gets a gradient, and an exact method's is that of the plain model."""
    x, y = batch(side)
    model.eval().zero_grad()
    F.cross_entropy(model(x), y).backward()
    plain = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    for method in methods:
        model.zero_grad()
        assert step(fedact.compress(model, method, layers=min(2, len(convolutions(model)))), x, y).hidden_bytes == 0
        for name, gradient in gradients(model).items():
            assert gradient is not None, name
            assert gradient.isfinite().all(), name
            if method in ("vanilla", "exact"):
                torch.testing.assert_close(gradient, plain[name], rtol=1e-3, atol=1e-5)
    fedact.restore(model)


def check_a_plan(model: nn.Module, side: int, method: str, budget: int) -> None:
    x, y = batch(side)
    layers = min(1, len(convolutions(model))) if not head(model) else "auto"
    plan = fedact.make_plan(model, budget=budget, example=(x, y), method=method, layers=layers)
    assert plan.status != "skipped"
    # Alone in their storage, as a client's are: of a view, a copy is kept.
    part = x[: plan.micro_batch].clone(), y[: plan.micro_batch].clone()
    memory = step(fedact.apply(model, plan), *part)
    assert memory.hidden_bytes == 0
    assert memory.peak_bytes <= plan.peak_bytes <= budget
    fedact.restore(model)


@pytest.fixture(autouse=True)
def without_warnings():
    """What autograd keeps is named in a warning, and nothing of it is looked at here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="not compressed")
        yield


@pytest.mark.parametrize("name", SMALL)
def test_a_step_of_a_small_classifier_counts_all_it_holds(name):
    torch.manual_seed(0)
    check_a_step(SMALL[name](), SIDES.get(name, 32), ("vanilla", "exact", "hosvd:variance=0.8", "quantize", "transform"))


@pytest.mark.parametrize("name", ["vit", "convnext", "squeezenet1_1"])
@pytest.mark.parametrize("method", ["auto", "exact"])
def test_a_plan_for_a_small_classifier_keeps_its_budget(name, method):
    torch.manual_seed(0)
    check_a_plan(SMALL[name](), 32, method, 150_000)


def counts(model: nn.Module) -> tuple[int, int]:
    return len(convolutions(model)), len(body_layers(model))


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "alexnet", "vgg11", "efficientnet_b0", "squeezenet1_0"])
def test_the_layers_of_a_convolutional_network_are_its_convolutions(name):
    convolved, layers = counts(on_no_device(name, CLASSES))
    assert convolved == layers


@pytest.mark.parametrize(("name", "linear"), [("convnext_tiny", 36), ("vit_b_32", 48), ("swin_t", 51), ("maxvit_t", 89)])
def test_where_linear_layers_are_the_body_they_count_too(name, linear):
    convolved, layers = counts(on_no_device(name, CLASSES))
    assert layers == convolved + linear


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", sorted(set(classifier_names()) - {"regnet_y_128gf"}))
def test_linear_layers_are_the_body_of_transformers_and_convnext_alone(name):
    convolved, layers = counts(on_no_device(name, CLASSES))
    assert (layers > convolved) == name.startswith(("convnext", "vit", "swin", "maxvit"))


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", FAMILIES)
def test_a_step_of_every_family_counts_all_it_holds(name):
    torch.manual_seed(0)
    model, side = make_model(name, CLASSES), FAMILIES[name]
    check_a_step(model, side, ("vanilla", "exact", "hosvd:variance=0.8"))
    layers = min(2, len(convolutions(model))) if len(convolutions(model)) > 1 else 0
    for method in ("auto", "hosvd:variance=0.8", "exact"):
        plan = fedact.make_plan(model, "4MB", batch(side), method, layers, scope="saved")
        assert 0 < plan.saved_bytes <= 4_000_000


def on_no_device(name: str, classes: int) -> nn.Module:
    # RegNet counts its blocks with tensors.
    with torch.device("cpu" if name.startswith("regnet") else "meta"):
        return get_model(name, num_classes=classes, **({"init_weights": False} if name in AUXILIARY else {}))


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "name", [name for name in classifier_names() if not name.startswith("regnet") or name.endswith("00mf")]
)
def test_only_the_head_that_is_found_depends_on_the_classes(name):
    ours, theirs = on_no_device(name, CLASSES), on_no_device(name, 1000).state_dict()
    (found,) = head(ours) or convolutions(ours)[-1:]
    layer = ours.get_submodule(found)
    assert (layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels) == CLASSES
    other = {key for key, tensor in ours.state_dict().items() if tensor.shape != theirs[key].shape}
    assert {key for key in other if not key.startswith(("aux1.", "aux2.", "AuxLogits."))} <= {
        f"{found}.weight",
        f"{found}.bias",
    }


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_weights_with_auxiliary_heads_load_without_them(name):
    source = get_model(name, num_classes=11, init_weights=False)
    model = make_model(name, CLASSES)
    start = model.fc.weight.clone()
    load_into(model, source.state_dict(), "a file of torchvision's")
    assert torch.equal(model.fc.weight, start)
    first = convolutions(model)[0]
    assert torch.equal(model.get_submodule(first).weight, source.get_submodule(first).weight)


@pytest.mark.parametrize(("today", "published"), [("layer1.norm1.", "layer1.norm.1."), ("layer1.conv2.", "layer1.conv.2.")])
def test_published_densenet_names_are_those_of_today(today, published):
    source, model = make_model("densenet121", CLASSES), make_model("densenet121", CLASSES)
    tensors = {key.replace(today, published): tensor for key, tensor in source.state_dict().items()}
    assert tensors.keys() != source.state_dict().keys()
    load_into(model, tensors, "torchvision's")
    assert all(torch.equal(tensor, source.state_dict()[key]) for key, tensor in model.state_dict().items())


def test_published_vit_names_are_those_of_today():
    source, model = SMALL["vit"](), SMALL["vit"]()
    spelled = {"mlp.0.": "mlp.linear_1.", "mlp.3.": "mlp.linear_2."}
    tensors = source.state_dict()
    for today, published in spelled.items():
        tensors = {key.replace(today, published): tensor for key, tensor in tensors.items()}
    # Its own loader takes these names too: what it makes of them is the oracle.
    (oracle := SMALL["vit"]()).load_state_dict(dict(tensors))
    load_into(model, tensors, "torchvision's")
    assert all(torch.equal(tensor, oracle.state_dict()[key]) for key, tensor in model.state_dict().items())


def test_weights_from_before_batches_were_counted_load():
    source, model = make_model("resnet18", CLASSES), make_model("resnet18", CLASSES)
    tensors = {key: tensor for key, tensor in source.state_dict().items() if not key.endswith("num_batches_tracked")}
    load_into(model, tensors, "an old file")
    assert torch.equal(model.layer4[1].conv2.weight, source.layer4[1].conv2.weight)


def test_a_missing_batch_norm_is_still_refused():
    model = make_model("resnet18", CLASSES)
    tensors = {key: tensor for key, tensor in model.state_dict().items() if not key.startswith("bn1.")}
    with pytest.raises(ConfigError, match=r"5 tensors do not fit \(bn1.bias"):
        load_into(model, tensors, "a file")


def test_a_model_that_asks_for_its_layouts_version_is_filled():
    source, model = SMALL["mnasnet0_5"](), SMALL["mnasnet0_5"]()
    fill(model, dict(source.state_dict()))
    assert all(torch.equal(tensor, source.state_dict()[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("model", "side", "reason"),
    [("alexnet", 32, "too small"), ("maxvit_t", 64, "invalid for input")],
)
def test_a_size_of_image_that_a_model_does_not_take_is_refused(capsys, tmp_path, model, side, reason):
    error = refused(capsys, ["--model", model, "--resolution", str(side)], tmp_path / "run")
    assert f"--resolution {side}: {model} takes no images of that size" in error
    assert reason in error


def test_a_first_layer_trained_in_micro_batches_holds_what_its_plan_says():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, CLASSES))
    x, y = batch(16, 8)
    plan = fedact.make_plan(model, budget=700, example=(x, y), method="exact", layers=1, scope="saved")
    assert plan.micro_batch < len(x)

    def batches(chosen: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        return x[torch.from_numpy(chosen)], y[torch.from_numpy(chosen)]

    recipe = Recipe(batch_size=8, local_epochs=1, lr=0.1, momentum=0.0, weight_decay=0.0, clip_norm=1.0)
    trained = train_locally(fedact.apply(model, plan), batches, len(x), plan, recipe, np.random.default_rng(0))
    assert trained.saved_bytes == plan.saved_bytes


FLEET = ["--dataset", "synthetic", "--weights", "none", "--clients", "2", "--resolution", "32", "--max-examples", "120"]
FLEET += ["--max-test-examples", "40"]


@pytest.mark.parametrize(("name", "layers"), [("squeezenet1_1", "auto"), ("mnasnet0_5", "2")])
def test_a_fleet_trains_a_classifier(tmp_path, name, layers):
    arguments = [*FLEET, "--model", name, "--layers", layers, "--rounds", "1", "--budget", "512KB"]
    assert main([*arguments, "--out", str(tmp_path / "run")]) == 0


def rows(folder) -> list[dict]:
    found = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    return [{key: row[key] for key in row if key != "seconds"} for row in found if row["kind"] in ("client", "round")]


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["mcunet", "resnet18", "efficientnet_b0"])
def test_rows_are_the_same_without_the_cache(tmp_path, name):
    arguments = [*FLEET, "--model", name, "--layers", "2", "--rounds", "2", "--method", "hosvd:variance=0.8"]
    for folder, more in (("with", []), ("without", ["--cache-size", "none"])):
        assert main([*arguments, *more, "--out", str(tmp_path / folder)]) == 0
    assert len(rows(tmp_path / "with")) == 7
    assert rows(tmp_path / "with") == rows(tmp_path / "without")
