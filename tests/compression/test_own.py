"""Methods of one's own: found by their names, refused in one line, and never run by what was only read."""

import pickle
import sys
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import fedact
from fedact.compression import METHODS, choose_method, installed_names, kept_method, make_method, method_name
from fedact.config.code import PRIVATE
from fedact.config.errors import ConfigError
from fedact.config.spec import split
from tests.support.broken_methods import Half
from tests.support.own_methods import BAD, install, write_mine


@pytest.fixture(autouse=True)
def nothing_loaded(monkeypatch, tmp_path):
    """Modules that a test loads are not there for the next; the folder is the one that Python runs in."""
    monkeypatch.chdir(tmp_path)
    before = {name for name in sys.modules if not name.startswith("brought")}
    for name in set(sys.modules) - before:
        monkeypatch.delitem(sys.modules, name)
    yield
    for name in set(sys.modules) - before:
        if name.startswith((PRIVATE, "brought")):
            del sys.modules[name]


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 3)
    return nn.Sequential(*layers)


def example() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0])


def test_a_file_names_a_method_with_its_settings(tmp_path):
    file = write_mine(tmp_path)
    method = make_method("mine.py:Half:scale=2")
    assert (type(method).__name__, method.scale) == ("Half", 2.0)
    assert method_name(method) == f"{file}:Half:scale=2"
    assert method_name(make_method("mine.py:Half:scale=1")) == f"{file}:Half"
    assert make_method(method_name(method)) == method == choose_method(f"{file}:Half:scale=2.0")


def test_a_module_names_a_method():
    text = "tests.support.broken_methods:Half"
    assert make_method(text) == Half()
    assert method_name(Half()) == text


def test_a_class_made_by_a_function_has_the_name_it_is_given(tmp_path):
    file = write_mine(
        tmp_path, "def make():\n    class Inner(Half): ...\n    return dataclass(frozen=True)(Inner)\nMade = make()"
    )
    assert method_name(make_method("mine.py:Made:scale=4")) == f"{file}:Made:scale=4"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("hosvd:variance=0.8", ("hosvd", {"variance": "0.8"})),
        ("a/mine.py:Half", ("a/mine.py:Half", {})),
        (" mine.py:Half:a=1,b=x:y ", ("mine.py:Half", {"a": "1", "b": "x:y"})),
        ("package.module:Half:a=1", ("package.module:Half", {"a": "1"})),
    ],
)
def test_a_name_is_split_from_its_settings(text, parts):
    assert split(text) == parts


@pytest.mark.parametrize(
    ("more", "name", "says"), [(more, *rest) for more, rest in BAD.items()], ids=[v[0] for v in BAD.values()]
)
def test_what_is_no_method_is_refused_in_one_line(tmp_path, more, name, says):
    write_mine(tmp_path, more)
    with pytest.raises(ConfigError, match=says) as caught:
        make_method(f"mine.py:{name}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("mine.py:Half:scale=9", "mine.py:Half: scale is above 0 and at most 8, not 9"),
        ("mine.py:Half:scale=0", "above 0"),
        ("mine.py:Half:scale=nan", "scale is above 0 and at most 8, not nan"),
        ("mine.py:Half:scal=1", "did you mean 'scale'"),
        ("mine.py:Half:scale", "key=value"),
        ("mine.py:Half:scale=x", "cannot be 'x'"),
        ("mine.py:Half:derive=-1", "derive is at least 0"),
        ("min.py:Half", "there is no file min.py; did you mean 'mine.py'"),
        ("mine.py", "mine.py:NAME"),
        ("mine.py:", "mine.py:NAME"),
        ("nowhere.methods:Half", "there is no module nowhere"),
        ("tests.support.broken_methods:Haf", "did you mean 'Half'"),
        ("hosvd:Variance", "key=value"),
        ("halv", "unknown method 'halv'"),
    ],
)
def test_a_wrong_name_or_setting_is_refused_in_one_line(tmp_path, text, says):
    write_mine(tmp_path)
    with pytest.raises(ConfigError, match=says) as caught:
        make_method(text)
    assert "\n" not in str(caught.value)


def test_what_was_only_read_runs_no_code(tmp_path):
    file = write_mine(tmp_path, "open('ran', 'w').close()")
    with pytest.raises(ConfigError, match=r"runs none: if you trust it, call fedact.compression.make_method"):
        kept_method(f"{file}:Half")
    assert not (tmp_path / "ran").exists()
    method = make_method("mine.py:Half")
    assert (tmp_path / "ran").exists()
    assert kept_method(f"{file}:Half:scale=2") == type(method)(scale=2.0)


def test_a_plan_by_a_method_of_ones_own_is_applied_where_its_code_was_run(tmp_path):
    file = write_mine(tmp_path)
    plan = fedact.make_plan(network(), "6KB", example(), method="mine.py:Half:scale=2", layers=1, scope="saved")
    assert {kept.method for kept in plan.kept} == {f"{file}:Half:scale=2"}
    model, (x, y) = fedact.apply(network(), plan), example()
    with fedact.measure_memory(model, (x, y)) as memory:
        nn.functional.cross_entropy(model(x), y).backward()
    assert memory.saved_bytes <= plan.saved_bytes <= 6000
    for name in [name for name in sys.modules if name.startswith(PRIVATE)]:
        del sys.modules[name]
    with pytest.raises(ConfigError, match="runs none"):
        fedact.apply(network(), fedact.Plan.from_json(plan.to_json()))


def test_an_object_of_a_file_has_a_name_and_one_of_a_notebook_none(tmp_path):
    assert fedact.make_plan(network(), None, example(), method=Half(), layers=1).kept[0].method == method_name(Half())

    @dataclass(frozen=True)
    class Local(Half):
        """As in a notebook."""

    with pytest.raises(ConfigError, match=r"write it into one, and name the method FILE.py:Local"):
        fedact.make_plan(network(), None, example(), method=Local(), layers=1)
    fedact.compress(network(), Local(), layers=1)


def test_a_method_of_ones_own_trains_as_it_rounds(tmp_path):
    write_mine(tmp_path)
    x, y = example()
    model, plain = fedact.compress(network(), "mine.py:Half", layers=1), network()
    for each in (model, plain):
        nn.functional.cross_entropy(each(x), y).backward()
    found, exact = model[2].weight.grad, plain[2].weight.grad
    assert 0 < (found - exact).norm() < 1e-3 * exact.norm()


def test_a_class_has_one_name(tmp_path):
    file = write_mine(tmp_path, "Same = Half")
    with pytest.raises(ConfigError, match=rf"mine\.py:Same is another name of {file}:Half: write that"):
        make_method("mine.py:Same")


def test_a_file_that_was_changed_makes_another_class(tmp_path):
    write_mine(tmp_path)
    first = make_method("mine.py:Half")
    write_mine(tmp_path, "@dataclass(frozen=True)\nclass Other(Half):\n    more: int = 1")
    assert type(make_method("mine.py:Half")) is not type(first)
    assert kept_method(f"{tmp_path}/mine.py:Other").more == 1


# Installed packages --------------------------------------------------------------------------------------------------------


def test_an_installed_package_brings_a_method(tmp_path, monkeypatch):
    install(tmp_path, "brought", {"half": "brought:Half"})
    with pytest.raises(ConfigError, match="unknown method 'half'"):
        make_method("half")
    monkeypatch.syspath_prepend(tmp_path)
    method = make_method("half:scale=2")
    assert method_name(method) == "half:scale=2"
    assert method_name(make_method("brought:Half")) == "half"
    assert kept_method("half") == make_method("half")
    assert installed_names() == {"half": "package brought"}
    with pytest.raises(ConfigError, match="half: scale is above 0 and at most 8, not 9"):
        make_method("half:scale=9")
    with pytest.raises(ConfigError, match=r"unknown method 'hal': .*did you mean 'half'"):
        make_method("hal")


def test_fedacts_own_names_come_first(tmp_path, monkeypatch):
    install(tmp_path, "brought", {"exact": "brought:Half"})
    monkeypatch.syspath_prepend(tmp_path)
    assert type(make_method("exact")) is METHODS["exact"]


@pytest.mark.parametrize(
    ("points", "text", "says"),
    [
        ({"half": "brought:Hal"}, None, "method 'half' of package brought fails: AttributeError"),
        ({"half": "nowhere:Half"}, None, "method 'half' of package brought fails: ModuleNotFoundError"),
        ({"half": "brought:Half"}, "1 / 0", "fails: ZeroDivisionError"),
        ({"half": "brought:Half"}, "Half = 3", "method 'half' of package brought is of type int"),
    ],
)
def test_a_package_that_brings_no_method_is_refused_in_one_line(tmp_path, monkeypatch, points, text, says):
    install(tmp_path, "brought", points, *([text] if text else []))
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=says) as caught:
        make_method("half")
    assert "\n" not in str(caught.value)


def test_two_packages_of_one_name_are_refused(tmp_path, monkeypatch):
    install(tmp_path, "brought", {"half": "brought:Half"})
    install(tmp_path, "brought_too", {"half": "brought_too:Half"})
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="comes from package brought and package brought_too"):
        make_method("half")
    assert type(make_method("brought_too:Half")).__module__ == "brought_too"


def test_a_known_name_looks_through_no_packages(monkeypatch):
    monkeypatch.setattr("fedact.compression.own.entry_points", lambda **_: pytest.fail("looked"))
    assert make_method("exact")
    assert method_name(make_method("quantize:bits=8")) == "quantize:bits=8"


def test_a_compressed_model_of_a_module_is_copied_and_pickled():
    model = fedact.compress(network(), "tests.support.broken_methods:Half", layers=1)
    assert pickle.loads(pickle.dumps(model))[2].method == Half()


# What a layer relies on ---------------------------------------------------------------------------------------------------

CONDUCT = {
    "InPlace": "changes its input in place",
    "ChangesStored": "changes what is stored as it reconstructs",
    "KeepsGraph": "hang on autograd's graph",
    "TooFewBytes": r"stores 240 bytes, and predicts 120",
    "View": r"stores views of 480 bytes as tensors of 240: store copies",
    "Hidden": "hides a tensor in its metadata",
    "UndeclaredState": "stores 4 state bytes, and predicts 0",
    "ReadsState": "fails on a tensor of .*IndexError",
    "OtherShape": r"reconstructs float32 \(2, 3, 4, 5\) from float32 \(2, 3, 5, 4\)",
    "OtherType": "reconstructs float64",
    "NoCompressed": "returns float16 .* from compress: it is a Compressed",
    "Fails": "fails on a tensor of .*: RuntimeError: no way",
    "OtherGradient": r"makes float32 \(1, 3, 3, 3\) as the gradient of float32 \(2, 3, 3, 3\) \(weight_gradient\)",
    "SaysThatItKeepsTheInput": "says that it keeps the input",
}


@pytest.mark.parametrize("name", CONDUCT)
def test_a_method_that_would_train_wrongly_is_refused_before_it_trains(name):
    text = f"tests.support.broken_methods:{name}"
    for act in (
        lambda: make_method(text),
        lambda: fedact.compress(network(), text, layers=1),
        lambda: fedact.make_plan(network(), None, example(), method=text, layers=1),
        lambda: fedact.compress(network(), make_method(text, check=False), layers=1),
    ):
        with pytest.raises(ConfigError, match=CONDUCT[name]) as caught:
            act()
        assert "\n" not in str(caught.value)
        assert "python -m fedact.laws" in str(caught.value)


@pytest.mark.parametrize(("name", "says"), [("LaterInPlace", "changes its input in place"), ("LaterShape", "reconstructs")])
def test_what_shows_only_on_larger_tensors_ends_the_first_step(name, says):
    model = fedact.compress(network(), f"tests.support.broken_methods:{name}", layers=2)
    x, y = example()
    with pytest.raises(ConfigError, match=says):
        nn.functional.cross_entropy(model(x), y).backward()


def test_a_look_at_a_method_changes_no_random_numbers():
    before = torch.random.get_rng_state()
    make_method("tests.support.broken_methods:Half")
    assert torch.equal(before, torch.random.get_rng_state())
