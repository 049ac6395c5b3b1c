"""Code of the user's own by its name: told apart, loaded once, known by its digest, and refused in one line."""

import sys
from hashlib import sha256

import pytest

from fedact.compression import METHODS
from fedact.config.code import (
    absolute_code,
    check_digest,
    code_digest,
    code_label,
    file_being_run,
    is_code,
    load_code,
    split_code,
)
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
    assert load_code(text) is load_code(text, code_digest(text))
    assert len(set(sys.modules) - before) == 1
    due = code_digest(text)
    file.write_text("def build(): return 2")
    assert load_code(text)() == 2
    for check in (check_digest, load_code):
        with pytest.raises(ConfigError, match=r"mine\.py:build has changed: its file's SHA-256 was \w{12}, and is \w{12}"):
            check(text, due)


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


def test_a_path_is_made_absolute_and_shown_short(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert absolute_code("nets/mine.py:build") == absolute_code("~/nets/mine.py:build") == f"{tmp_path}/nets/mine.py:build"
    assert absolute_code("mine.py:Blocks:size=4") == f"{tmp_path}/mine.py:Blocks:size=4"
    assert absolute_code("package.nets:build") == "package.nets:build"
    assert code_label(f"{tmp_path}/mine.py:build") == "mine.py:build"
    assert code_label("hosvd:variance=0.8") == "hosvd:variance=0.8"


def test_a_file_that_is_being_run_is_told(tmp_path):
    source = "from fedact.config.code import file_being_run\nseen = [file_being_run()]"
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
