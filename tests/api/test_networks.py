"""A network as a text: what is in a file by its name, what is in none by what it is made of."""

import functools

import numpy as np
import pytest
import torch
from torch import nn

from fedact.api.networks import network_text
from fedact.config.code import is_code
from fedact.config.code_digests import code_digest
from fedact.config.code_loading import load_code
from fedact.config.errors import ConfigError
from fedact.nn.surgery import compress
from tests.support.own_network import Net, build


class Squared(Net):
    def forward(self, x):
        return self.head(torch.square(self.body(x)).mean((2, 3)))


class Renamed(Net):
    """Another name and another text; the same instructions."""

    def forward(self, x):
        return self.head(torch.square(self.body(x)).mean((2, 3)))


def seeded(kind, *arguments):
    torch.manual_seed(0)
    return kind(*arguments)


def test_what_a_module_has_is_named_by_it():
    assert network_text(build) == "tests.support.own_network:build"
    assert network_text(Net) == "tests.support.own_network:Net"
    assert load_code(network_text(build)) is build


@pytest.mark.parametrize(
    "function",
    [lambda classes: Net(classes), functools.partial(Net, channels=4), Net(4)],
    ids=["lambda", "partial", "module"],
)
def test_what_is_in_no_file_is_found_under_its_name(function):
    text = network_text(function)
    assert is_code(text)
    assert text.startswith("fedact_own_given_")
    assert network_text(function) == text
    found = load_code(text, {text: code_digest(text)})
    if isinstance(function, nn.Module):
        assert type(found) is Net
        assert found is not function
    else:
        assert found is function


def test_a_network_is_known_by_its_weights_its_layers_and_what_it_computes():
    texts = [
        network_text(seeded(Net, 4)), network_text(Net(4)), network_text(seeded(Net, 5)), network_text(seeded(Squared, 4)),
        network_text(lambda classes: Net(classes)), network_text(lambda classes: Net(classes, 8)),
        network_text(lambda classes: Squared(classes)),
    ]  # fmt: skip
    assert len(set(texts)) == len(texts)
    assert network_text(seeded(Net, 4)) == texts[0]
    width = 8
    assert network_text(lambda classes: Net(classes, width)) != texts[-2]


class Scaled(Net):
    """A network with what no layer shows and no state_dict holds."""

    times = 1

    def __init__(self, classes, scale=1.0, shift=None):
        super().__init__(classes)
        self.scale, self.shift = scale, shift
        self.register_buffer("offset", torch.full((1,), scale), persistent=False)

    def forward(self, x):
        return outer(super().forward(x) * self.scale) * self.times


def outer(x):
    return x * AROUND


AROUND = 1


def test_a_network_is_known_by_its_attributes_and_by_what_it_uses_from_around_it(monkeypatch):
    def scaled(scale):
        return lambda classes: Scaled(classes, scale)

    one = network_text(seeded(Scaled, 4))
    assert network_text(seeded(Scaled, 4)) == one
    others = [network_text(seeded(Scaled, 4, 2.0)), network_text(seeded(Scaled, 4, 1.0, torch.ones(2)))]
    others += [network_text(seeded(Scaled, 4, 1.0, np.ones(2))), network_text(seeded(Scaled, 4, 1.0, [1]))]
    monkeypatch.setattr(Scaled, "times", 2)
    others.append(network_text(seeded(Scaled, 4)))
    monkeypatch.undo()
    monkeypatch.setitem(globals(), "AROUND", 2)
    others.append(network_text(seeded(Scaled, 4)))
    monkeypatch.undo()
    assert len({one, *others}) == 7
    assert network_text(scaled(1.0)) == network_text(scaled(1.0)) != network_text(scaled(2.0))
    assert network_text(functools.partial(Scaled, scale=1.0)) != network_text(functools.partial(Scaled, scale=2.0))


def test_a_compressed_module_is_handed_over_as_the_plain_one():
    net = seeded(Net, 4)
    compressed = compress(seeded(Net, 4), "hosvd", layers=1)
    assert network_text(compressed) == network_text(net)
    assert any(not type(each).__module__.startswith(("torch.", "tests.")) for each in compressed.modules())


def test_what_is_no_network_is_refused():
    with pytest.raises(ConfigError, match=r"model is a dict: it is a name, a torch\.nn\.Module, or a function"):
        network_text({})
    net = Net(4)
    net.lock = (step for step in ())
    with pytest.raises(ConfigError, match="model cannot be copied: TypeError"):
        network_text(net)
