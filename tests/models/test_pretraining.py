"""How long the server pretrains, and which checkpoint it finds again."""

from concurrent.futures import ThreadPoolExecutor
from threading import Event

import numpy as np
import pytest
import torch
from torch import nn

from fedact.config.loading import make_config
from fedact.data import Examples, Preprocessing
from fedact.models import initialization as starting
from fedact.models import make_model, pretraining
from fedact.models.pretraining import PretrainingRecipe, nondefault_settings, pretrained
from fedact.models.weights import plain_preprocessing
from fedact.storage import locks, machine
from fedact.storage.checkpoints import digest

EXAMPLES = Examples(np.arange(40 * 8 * 8 * 3, dtype=np.uint8).reshape(40, 8, 8, 3), np.arange(40) % 4)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def trained(folder, *recipe) -> nn.Module:
    own = model()
    own.steps = 0
    own.register_forward_hook(lambda module, *_: setattr(module, "steps", module.steps + 1))
    pretrained(own, "a name", EXAMPLES, plain_preprocessing(8), np.random.default_rng(0), folder, *recipe)
    return own


@pytest.mark.parametrize("epochs", [1, 3])
def test_it_takes_so_many_passes(epochs, tmp_path):
    # 40 examples in batches of at most 32 are two steps.
    assert trained(tmp_path, PretrainingRecipe(epochs=epochs)).steps == 2 * epochs


def test_another_number_of_epochs_is_another_checkpoint_and_the_same_is_found_again(tmp_path):
    assert trained(tmp_path, PretrainingRecipe(epochs=1)).steps == 2
    assert trained(tmp_path, PretrainingRecipe(epochs=2)).steps == 4
    assert trained(tmp_path, PretrainingRecipe(epochs=1)).steps == 0
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


def test_who_wants_what_another_is_fitting_waits_for_it_and_takes_it(tmp_path, monkeypatch):
    fitted, real, begun, waiting = [], pretraining._train, Event(), Event()

    def slow(*arguments):
        fitted.append(arguments)
        begun.set()
        assert waiting.wait(60)
        real(*arguments)

    monkeypatch.setattr(pretraining, "_train", slow)
    monkeypatch.setattr(locks.log, "info", lambda text: waiting.set() if text.startswith("waiting") else None)
    models = [model(), model()]
    wanted = ("a name", EXAMPLES, plain_preprocessing(8), np.random.default_rng(0), tmp_path, PretrainingRecipe(epochs=1))
    with ThreadPoolExecutor(2) as both:
        first = both.submit(pretrained, models[0], *wanted)
        assert begun.wait(60)
        second = both.submit(pretrained, models[1], *wanted)
        assert digest(first.result(60)) == digest(second.result(60))
    assert len(fitted) == 1
    assert [file.suffix for file in tmp_path.iterdir()] == [".safetensors"]


@pytest.mark.parametrize("harm", ["a bit", "its end", "all of it"])
def test_a_checkpoint_that_is_not_what_was_written_is_made_anew_and_said_to_be(harm, tmp_path, caplog):
    recipe = PretrainingRecipe(epochs=1)
    trained(tmp_path, recipe)
    (file,) = tmp_path.iterdir()
    content = file.read_bytes()
    harmed = {"a bit": content[:-1] + bytes([content[-1] ^ 1]), "its end": content[:-3], "all of it": b""}[harm]
    file.write_bytes(harmed)
    with caplog.at_level("INFO", "fedact"):
        assert trained(tmp_path, recipe).steps == 2
    assert "pretraining anew: checkpoint" in caplog.text
    assert file.read_bytes() == content
    assert file.stat().st_mode & 0o777 == 0o600


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_the_weights_are_the_same_to_the_bit_whatever_the_number_of_threads(tmp_path, threads):
    random = np.random.default_rng(0)
    examples = Examples(random.integers(0, 256, (64, 64, 64, 3), dtype=np.uint8), np.arange(64) % 10)
    digests = set()
    for count in (1, 2, 4):
        threads(count)
        torch.manual_seed(0)
        own = make_model("mobilenet_v2", 10, 0.35)
        recipe, folder = PretrainingRecipe(epochs=1), tmp_path / str(count)
        weights = pretrained(own, "a name", examples, plain_preprocessing(64), np.random.default_rng(0), folder, recipe)
        digests.add(digest(weights))
        assert torch.get_num_threads() == count
        assert [file.name for file in folder.iterdir()] == [file.name for file in (tmp_path / "1").iterdir()]
    assert len(digests) == 1


def test_as_many_threads_as_before_go_on_after_an_error_in_pretraining(tmp_path, threads, monkeypatch):
    def fall(*_):
        assert torch.get_num_threads() == 1
        raise ZeroDivisionError

    threads(2)
    monkeypatch.setattr(pretraining, "_train", fall)
    with pytest.raises(ZeroDivisionError):
        trained(tmp_path)
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("resize", [8, 12])
def test_inputs_made_once_are_the_same_to_the_bit_as_batch_by_batch(resize, tmp_path, monkeypatch):
    preprocessing, digests, calls = Preprocessing(8, resize, (0.4,) * 3, (0.2,) * 3), [], []
    real = Preprocessing.__call__
    monkeypatch.setattr(Preprocessing, "__call__", lambda self, images: calls.append(len(images)) or real(self, images))
    for most in (pretraining.MOST_INPUT_BYTES, 0):
        monkeypatch.setattr(pretraining, "MOST_INPUT_BYTES", most)
        recipe, folder = PretrainingRecipe(epochs=3, crop=6, flip=True), tmp_path / str(most)
        weights = pretrained(model(), "a name", EXAMPLES, preprocessing, np.random.default_rng(0), folder, recipe)
        digests.append(digest(weights))
    assert digests[0] == digests[1]
    assert calls == [1, 40, 1, *[20] * 6]


@pytest.mark.parametrize("name", ["processor_name", "version"])
def test_another_processor_or_library_is_another_checkpoint(name, tmp_path, monkeypatch):
    assert trained(tmp_path, PretrainingRecipe(epochs=1)).steps == 2
    monkeypatch.setattr(machine, name, lambda *_: "another")
    assert trained(tmp_path, PretrainingRecipe(epochs=1)).steps == 2
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


def test_the_default_run_finds_the_checkpoint_of_the_recipe_as_it_always_was(tmp_path, monkeypatch):
    # What fingerprints are made of: another key or value would pretrain everything anew.
    recipe = {"epochs": 12, "batch_size": 32, "lr": 0.02, "momentum": 0.9, "weight_decay": 5e-4}
    assert nondefault_settings(PretrainingRecipe(epochs=make_config({}).pretrain_epochs)) == recipe
    monkeypatch.setattr(pretraining, "_train", lambda *arguments: None)
    monkeypatch.setenv("FEDACT_CACHE", str(tmp_path / "run"))
    own = model()
    name = f"{make_config({}).model} None 0"
    starting.pretrain(make_config({}), own, EXAMPLES, plain_preprocessing(8))
    pretrained(model(), name, EXAMPLES, plain_preprocessing(8), np.random.default_rng(0), tmp_path)
    names = [[file.name for file in folder.glob("*.safetensors")] for folder in (tmp_path, tmp_path / "run" / "pretrained")]
    assert names[0] == names[1]
    assert len(names[0]) == 1
