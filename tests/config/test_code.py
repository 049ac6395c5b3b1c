"""Code of the user's own by its name: told apart, loaded once, known by its digest, and refused in one line."""

import sys
from hashlib import sha256
from pathlib import Path

import pytest

from fedact.compression import METHODS
from fedact.config.code import absolute_code, code_label, is_code, split_code
from fedact.config.code_digests import check_digest, code_digest
from fedact.config.code_imports import imported_code
from fedact.config.code_loading import file_being_run, load_code
from fedact.config.errors import ConfigError
from fedact.data import DATASETS
from fedact.data.partition import PARTITIONS
from fedact.models import MODELS

OURS = [*METHODS, *DATASETS, *PARTITIONS, *MODELS, "timm:vit_tiny", "hf:mnist", "clients:mine.csv", "hosvd:variance=0.8"]


def test_nothing_of_ours_is_code():
    assert not [text for text in OURS if is_code(text)]
    assert not [
        text for text in ("", ":", "a.py", "mine.py:", ":build", "mine.py:2", "no_such_module:build") if is_code(text)
    ]


@pytest.mark.parametrize(
    ("text", "code", "settings"),
    [
        ("mine.py:build", "mine.py:build", ""),
        ("/a b/mine.py:Net.build", "/a b/mine.py:Net.build", ""),
        (r"C:\nets\mine.py:Blocks:size=4,bits=8", r"C:\nets\mine.py:Blocks", "size=4,bits=8"),
        ("no.such.package:build", "no.such.package:build", ""),
        ("json:loads", "json:loads", ""),
    ],
)
def test_code_is_a_file_or_a_module_and_a_name(text, code, settings):
    assert is_code(text)
    assert split_code(text) == (code, settings)


def test_telling_code_apart_runs_none_of_it(tmp_path, monkeypatch):
    (tmp_path / "loud_module.py").write_text("raise AssertionError('it ran')")
    monkeypatch.syspath_prepend(tmp_path)
    file = f"{tmp_path}/loud_module.py:build"
    assert is_code("loud_module:build")
    assert is_code(file)
    assert code_digest(file) == code_digest("loud_module:build") == sha256(b"raise AssertionError('it ran')").hexdigest()


def test_a_file_runs_once_and_again_when_it_is_another(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("ran = []\ndef build(): return 1")
    text = f"{file}:build"
    before = set(sys.modules)
    assert load_code(text)() == 1
    assert load_code(text) is load_code(text, {text: code_digest(text)})
    assert len(set(sys.modules) - before) == 1
    due = code_digest(text)
    file.write_text("def build(): return 2")
    assert load_code(text)() == 2
    for check in (lambda: check_digest(text, due), lambda: load_code(text, {text: due})):
        with pytest.raises(ConfigError, match=r"mine\.py:build has changed: its file's SHA-256 was \w{12}, and is \w{12}"):
            check()


def test_files_of_one_name_and_one_content_are_two_modules(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text("def where(): return __file__")
    found = [load_code(f"{tmp_path / folder}/mine.py:where")() for folder in ("a", "b")]
    assert found == [str(tmp_path / folder / "mine.py") for folder in ("a", "b")]


def test_a_file_may_import_what_lies_beside_it(tmp_path):
    (tmp_path / "beside_mine.py").write_text("value = 3")
    (tmp_path / "mine.py").write_text("from beside_mine import value\ndef build(): return value")
    path = list(sys.path)
    assert load_code(f"{tmp_path}/mine.py:build")() == 3
    assert sys.path == path


def test_what_code_imports_from_beside_it_is_known_too(tmp_path):
    files = {
        "mine.py": "import json, torch, own_tools\nfrom own_layers.blocks import Block\ndef build():\n    import own_late",
        "own_tools.py": "raise AssertionError('it ran')", "own_late.py": "from own_tools import *", "own_other.py": "",
        "own_layers/__init__.py": "", "own_layers/blocks.py": "from . import parts\nfrom ..beyond import x",
        "own_layers/parts.py": "", "json.py": "", "torch.py": "", "fedact.py": "",
    }  # fmt: skip
    (tmp_path / "own_layers").mkdir()
    for name, source in files.items():
        (tmp_path / name).write_text(source)
    imported = imported_code(f"{tmp_path}/mine.py:build")
    assert [str(Path(key).relative_to(tmp_path)) for key in imported] == [
        "own_late.py", "own_layers/__init__.py", "own_layers/blocks.py", "own_layers/parts.py", "own_tools.py",
    ]  # fmt: skip
    assert imported[f"{tmp_path}/own_tools.py"] == sha256(files["own_tools.py"].encode()).hexdigest()
    assert imported_code("json:loads") == imported_code("torch.nn:Linear") == {}


def test_a_packages_modules_are_known_by_their_names(tmp_path, monkeypatch):
    (tmp_path / "own_package").mkdir()
    for name, source in {"__init__": "", "nets": "from .layers import x\nimport own_beside", "layers": "x = 1"}.items():
        (tmp_path / "own_package" / f"{name}.py").write_text(source)
    (tmp_path / "own_beside.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    table = imported_code("own_package.nets:x")
    assert list(table) == ["own_beside", "own_package", "own_package.layers"]
    assert load_code("own_package.nets:x", table) == 1
    (tmp_path / "own_package" / "layers.py").write_text("x = 20")
    with pytest.raises(ConfigError, match=r"own_package\.layers has changed"):
        load_code("own_package.nets:x", table)


def test_a_changed_import_is_another_network_in_the_same_process(tmp_path):
    text, found = f"{tmp_path}/mine.py:value", []
    (tmp_path / "mine.py").write_text("from own_changing.part import value")
    (tmp_path / "own_changing").mkdir()
    (tmp_path / "own_changing" / "__init__.py").touch()
    for value in ("1", "22"):
        (tmp_path / "own_changing" / "part.py").write_text(f"value = {value}")
        found += [load_code(text), load_code(text)]
    assert found == [1, 1, 22, 22]


def test_two_folders_files_of_one_name_are_two(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "own_same.py").write_text(f"value = '{folder}'")
        (tmp_path / folder / "mine.py").write_text("from own_same import value")
    assert [load_code(f"{tmp_path / folder}/mine.py:value") for folder in ("a", "b")] == ["a", "b"]


def test_a_path_is_made_absolute_and_shown_short(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert absolute_code("nets/mine.py:build") == absolute_code("~/nets/mine.py:build") == f"{tmp_path}/nets/mine.py:build"
    assert absolute_code("mine.py:Blocks:size=4") == f"{tmp_path}/mine.py:Blocks:size=4"
    assert absolute_code("package.nets:build") == "package.nets:build"
    assert code_label(f"{tmp_path}/mine.py:build") == "mine.py:build"
    assert code_label("hosvd:variance=0.8") == "hosvd:variance=0.8"


def test_a_file_that_is_being_run_is_told(tmp_path):
    source = "from fedact.config.code_loading import file_being_run\nseen = [file_being_run()]"
    (tmp_path / "mine.py").write_text(source)
    assert load_code(f"{tmp_path}/mine.py:seen") == [str(tmp_path / "mine.py")]
    assert file_being_run() is None


@pytest.mark.parametrize(
    ("source", "text", "said"),
    [
        (None, "mine.py:build", "there is no file .*mine.py; did you mean 'mind.py'"),
        ("def built(): pass", "mine.py:build", "there is no 'build' in .*mine.py; did you mean 'built'"),
        ("def build(:\n pass", "mine.py:build", "mine.py:build fails, line 1: SyntaxError: invalid syntax"),
        ("x = 1\nraise KeyError('two\\nlines')", "mine.py:build", "fails, line 2: KeyError: "),
        ("import sys\nsys.exit(3)", "mine.py:build", "fails, line 2: SystemExit: 3"),
        ("import no_such_thing", "mine.py:build", "fails, line 1: ModuleNotFoundError: No module named 'no_such_thing'"),
        ("class A: pass", "mine.py:A.build", "there is no 'build' in .*mine.py"),
        ("", "no.such.package:build", "no.such.package:build: there is no module no"),
        ("", "os.path:joint", "there is no 'joint' in os.path; did you mean 'join'"),
        ("", "fedact_own_given_0:Net", "Net is in no file: call fedact.run again"),
    ],
)
def test_what_is_wrong_is_one_line(source, text, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mind.py").touch()
    if source is not None:
        (tmp_path / "mine.py").write_text(source)
    before = set(sys.modules)
    with pytest.raises(ConfigError, match=said) as error:
        load_code(text)
    assert "\n" not in str(error.value)
    assert not {name for name in set(sys.modules) - before if name.startswith("fedact_own_")} or "there is no" in said


def test_a_module_without_a_file_has_no_digest():
    with pytest.raises(ConfigError, match="there is no module sys with a file of its own"):
        code_digest("sys:path")


def test_ctrl_c_in_a_file_is_one(tmp_path):
    (tmp_path / "mine.py").write_text("raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        load_code(f"{tmp_path}/mine.py:build")
