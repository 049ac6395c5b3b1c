"""What README.md and docs/ say must be so: commands parse, code runs, pictures and files are there.

A block fenced as ``python`` is run, the blocks of a page one after the other, or written into the file that its first line
names; one fenced as ``py`` needs data or a run that
is not there, and is only compiled.
"""

import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from copy import deepcopy
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

import fedact
from fedact import bench, compare, plan, simulate
from fedact.compression import AUTO, METHODS, choose_method
from fedact.config.code import is_code
from fedact.config.loading import make_config, read_toml
from fedact.config.natural import natural_clients
from fedact.config.schema import Config
from fedact.data.partition import make_partition
from fedact.laws import __main__ as laws

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXTS = {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in PAGES}
COMMAND = re.compile(r"python -m fedact\.(\w+)\s+([^`#&;\n]+)")
DOORS = {"simulate": simulate, "plan": plan, "bench": bench, "compare": compare, "laws": laws}


def blocks(text: str, kind: str) -> list[str]:
    """Return the contents of a page's fenced blocks of one kind."""
    return re.findall(rf"^```{kind}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def inline_code(text: str) -> list[str]:
    """Return what stands between single backticks, on one line each."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose)]


def commands(text: str) -> Iterator[tuple[str, str]]:
    """Yield each command of fedact on a page as (name of the command, arguments)."""
    fenced = "\n".join(re.findall(r"^```[^\n]*\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE))
    for code in [fenced.replace("\\\n", " "), *inline_code(text)]:
        yield from COMMAND.findall(code)


FOUND = {(page, door, arguments.strip()) for page, text in TEXTS.items() for door, arguments in commands(text)}
COMMANDS = sorted(found for found in FOUND if found[2] != "--help")


@pytest.mark.parametrize(("page", "door", "arguments"), COMMANDS)
def test_every_command_is_understood(page, door, arguments):
    settings = DOORS[door].parser().settings(shlex.split(arguments))
    given = {
        name: value
        for name, value in settings.items()
        if name in Config.model_fields and door in ("simulate", "plan", "bench")
    }
    make_config(given if door == "simulate" else {name: value for name, value in given.items() if name != "method"})
    for method in settings.get("method", filter(None, [settings.get("name")])):
        assert is_code(method) or choose_method(method)
    if "partition" in given:
        assert natural_clients(given["partition"]) or make_partition(given["partition"])


def test_every_page_has_commands_that_are_checked():
    assert {"README.md", "docs/start.md", "docs/planner.md", "docs/fleets.md"} <= {page for page, _, _ in COMMANDS}
    assert {door for _, door, _ in COMMANDS} == set(DOORS)


@pytest.mark.parametrize("page", TEXTS)
def test_every_flag_that_is_named_is_there(page):
    known = {flag for door in DOORS.values() for flag in door.parser()._option_string_actions}
    named = {code.split()[0] for code in inline_code(TEXTS[page]) if code.startswith("--")}
    assert named <= known


@pytest.mark.parametrize("page", TEXTS)
def test_every_setting_of_a_flower_run_is_there(page):
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    settings = re.findall(r'--run-config "([^"]*)"', TEXTS[page])
    assert {name for each in settings for name in re.findall(r"([a-z][a-z-]*)=", each)} <= set(known)


RUNNABLE = [page for page, text in TEXTS.items() if blocks(text, "python") and page != "README.md"]


@pytest.mark.parametrize("page", RUNNABLE)
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks(TEXTS[page], "python"):
        if file := re.match(r"# (\w+\.py)\n", block):
            Path(file[1]).write_text(block, encoding="utf-8")
        else:
            exec(compile(block, page, "exec"), names)


@pytest.mark.parametrize("page", [page for page, text in TEXTS.items() if blocks(text, "py")])
def test_code_that_needs_a_run_compiles(page):
    for block in blocks(TEXTS[page], "py"):
        compile(block, page, "exec")


def test_the_training_loop_of_the_readme_saves_the_memory_it_says(capsys):
    (block,) = blocks(TEXTS["README.md"], "python")
    exec(compile(block, "README", "exec"), {})
    found = {line.split()[0]: tuple(map(int, line.split()[1:])) for line in capsys.readouterr().out.splitlines()}
    lines = re.findall(r"^# (\S+) ([\d,]+) ([\d,]+)$", block, re.MULTILINE)
    said = {method: [int(size.replace(",", "")) for size in sizes] for method, *sizes in lines}
    assert list(said) == list(found)
    assert all(found[method] == pytest.approx(sizes, rel=0.1) for method, sizes in said.items())
    saved = {method: size for method, (_, size) in found.items()}
    assert saved["vanilla"] > 2 * saved["exact"] > 2 * saved["hosvd:variance=0.8"] > 2 * saved["transform"]


@pytest.mark.parametrize(("page", "kind"), [("README.md", "python"), ("docs/planner.md", "py")])
def test_a_loop_of_micro_batches_takes_the_step_of_the_whole_batch(page, kind):
    (block,) = blocks(TEXTS[page], kind)
    loop = block[block.index("optimizer = ") :]
    torch.manual_seed(0)
    start = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(4 * 36, 10))
    x, y = torch.randn(8, 3, 8, 8), torch.randint(10, (8,))
    stepped = {}
    for micro_batch in (8, 3):
        model = fedact.compress(deepcopy(start), "exact", layers=1)
        F.cross_entropy(model(x), y).backward()  # the README measures before it trains: that gradient must not count
        names = {"torch": torch, "cross_entropy": F.cross_entropy, "x": x, "y": y, "model": model}
        exec(compile(loop, page, "exec"), {**names, "plan": SimpleNamespace(micro_batch=micro_batch)})
        stepped[micro_batch] = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    plain = deepcopy(start)
    F.cross_entropy(plain(x), y).backward()
    torch.optim.SGD(plain.parameters(), lr=0.01).step()
    whole = torch.cat([parameter.detach().flatten() for parameter in plain.parameters()])
    assert torch.dist(whole, torch.cat([parameter.detach().flatten() for parameter in start.parameters()])) > 1e-3
    torch.testing.assert_close(stepped[8], whole)
    torch.testing.assert_close(stepped[3], whole)


RUNS = sorted(path for path in (ROOT / "configs").glob("*.toml") if path.stem != "devices")


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_every_config_is_valid_and_says_how_it_is_run(path):
    assert make_config(read_toml(path))
    assert f"--config configs/{path.name}" in path.read_text()


@pytest.mark.parametrize("page", TEXTS)
def test_every_file_that_a_page_leads_to_is_there(page):
    prose = re.sub(r"^```.*?^```|`[^`]*`", "", TEXTS[page], flags=re.DOTALL | re.MULTILINE)
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", prose)
    local = [link for link in links if "://" not in link]
    assert all(((ROOT / page).parent / link).exists() for link in local), local


@pytest.mark.parametrize("page", TEXTS)
def test_every_test_that_a_page_names_is_there(page):
    assert all((ROOT / file).is_file() for file in re.findall(r"\btests/[\w/]+\.py\b", TEXTS[page]))


def test_the_readme_is_a_page_with_a_picture():
    text = TEXTS["README.md"]
    assert len(text.encode()) < 10_000
    assert re.search(r"!\[.*?\]\(.*?\)", text)


def test_the_api_page_has_every_public_name_and_every_method():
    named = re.findall(r"^::: ([\w.]+)$", TEXTS["docs/api.md"], flags=re.MULTILINE)
    found = [getattr(import_module(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in named]
    public = [getattr(fedact, name) for name in fedact.__all__ if name != "compression"]
    assert {*public, *METHODS.values()} <= set(found)


def test_every_method_has_a_section():
    assert {*METHODS, AUTO} <= set(re.findall(r"^## (\w+)$", TEXTS["docs/methods.md"], flags=re.MULTILINE))


def test_every_page_is_in_the_navigation():
    pages = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    assert set(re.findall(r": ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), flags=re.MULTILINE)) == pages


def test_ci_runs_the_readmes_own_commands():
    script = (ROOT / ".ci" / "run").read_text()
    needles = re.findall(r"readme_command '(.*?)'", script)
    assert len(needles) == 2
    assert all(any(needle in line for line in TEXTS["README.md"].splitlines()) for needle in needles)


@pytest.mark.slow
def test_the_pages_fetch_nothing_from_elsewhere_and_show_every_formula(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=300)
    pages = [page.read_text(encoding="utf-8") for page in tmp_path.rglob("*.html")]
    assert len(pages) >= len(TEXTS) - 2
    fetched = [url for page in pages for url in re.findall(r'<(?:script|link|img|iframe)[^>]*(?:src|href)="([^"]*)"', page)]
    assert fetched
    assert not [url for url in fetched if "//" in url]
    assert "<math" in (tmp_path / "methods.html").read_text(encoding="utf-8")
    assert not any('class="arithmatex"' in page for page in pages)
