"""The papers' figure on transformers: 4 bytes x elements of what convolutions and layers on tokens are called with."""

import copy

import pytest
import torch
from torch import Tensor, nn

import fedact
from fedact.measure.memory import measure_memory
from fedact.nn.layers.stored_sizes import StoredSizes
from fedact.nn.surgery import body_layers
from tests.support import transformers

pytestmark = pytest.mark.filterwarnings("ignore:not compressed")
NETWORKS = {"vit": transformers.vit, "swin": transformers.swin, "timm's vit": transformers.timm_vit}


def called_with(model: nn.Module, names: list[str], x: Tensor) -> int:
    """The elements of what layers are called with, as hooks on the lean network see it, the raw images aside."""
    found: dict[str, int] = {}
    model = fedact.compress(copy.deepcopy(model), "exact", layers=len(names))
    for name in names:
        see = lambda _, args, name=name: found.update({name: args[0].numel() * (args[0].shape != x.shape)})  # noqa: E731
        model.get_submodule(name).register_forward_pre_hook(see)
    with torch.no_grad():
        model(x)
    assert len(found) == len(names)
    return sum(found.values())


@pytest.mark.parametrize("layers", [3, 99])
@pytest.mark.parametrize("name", NETWORKS)
def test_of_exact_inputs_it_is_4_bytes_an_element_and_the_plain_network_has_as_many(name, layers):
    x, y = transformers.batch(32, 2)  # that Swin need not pad: plainly its windows would have more
    plain = NETWORKS[name]().eval()
    names = body_layers(plain)[-layers:]
    expected = 4 * called_with(plain, names, x)
    for method in ("vanilla", "exact"):
        model = fedact.compress(copy.deepcopy(plain), method, layers=len(names))
        with measure_memory(model, inputs=(x, y)) as memory:
            nn.functional.cross_entropy(model(x), y).backward()
        assert memory.paper_bytes == expected, method


def test_packed_codes_count_as_elements_and_the_methods_say_so_themselves():
    x, y = transformers.batch(32, 2)
    plain = transformers.vit().eval()
    names = body_layers(plain)[-4:]
    model = fedact.compress(copy.deepcopy(plain), "quantize:bits=4", layers=4)
    stored = StoredSizes(model, every=True)
    with stored, measure_memory(model, inputs=(x, y), stored=stored) as memory:
        nn.functional.cross_entropy(model(x), y).backward()
    assert memory.paper_bytes >= 4 * called_with(plain, names, x)
    assert memory.timeline.paper_bytes(stored.paper) == memory.paper_bytes


def test_a_layer_on_one_vector_an_example_does_not_count():
    model, x = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), torch.rand(4, 6)
    with measure_memory(model, inputs=x) as memory:
        model(x).sum().backward()
    assert memory.paper_bytes == 0


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_plain_attention_counts_what_both_projections_take(bias, batch_first):
    model, x = nn.MultiheadAttention(8, 2, bias=bias, batch_first=batch_first), torch.rand(5, 3, 8)
    with measure_memory(model) as memory:
        y = x * 2
        model(y, y, y, need_weights=False)[0].sum().backward()
    assert memory.paper_bytes == 2 * 4 * x.numel()
