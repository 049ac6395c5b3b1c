"""What the README says must be so."""

import re
import shlex
from pathlib import Path

import pytest

from fedact import bench, plan
from fedact.config.loading import make_config, read_toml
from fedact.config.schema import Config
from fedact.simulate import parser

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
INLINE = re.findall(r"^`python -m fedact\.simulate ([^`]*)`", README, flags=re.MULTILINE)
FENCED = re.findall(r"^(?!`).*python -m fedact\.simulate ([^`#\n]*)", README, flags=re.MULTILINE)
COMMANDS = sorted({*INLINE, *FENCED})


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_in_the_readme_is_understood(command):
    given, strange = parser().parse_known_args(shlex.split(command))
    settings = {name: value for name, value in vars(given).items() if name not in ("config", "resume", "dry_run", "list")}
    assert not strange
    make_config(settings)


@pytest.mark.parametrize("command", re.findall(r"^`?python -m fedact\.bench ([^`#]*)", README, flags=re.MULTILINE))
def test_every_bench_in_the_readme_is_understood(command):
    settings = bench.parser().settings(shlex.split(command))
    make_config({name: value for name, value in settings.items() if name in Config.model_fields})


@pytest.mark.parametrize("command", re.findall(r"^`?python -m fedact\.plan (-[^`#]*?)(?:`| #)", README, re.MULTILINE))
def test_every_plan_in_the_readme_is_understood(command):
    settings = plan.parser().settings(shlex.split(command))
    make_config({name: value for name, value in settings.items() if name in Config.model_fields})


RUNS = sorted(path for path in (ROOT / "configs").glob("*.toml") if path.stem != "devices")


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_every_config_is_valid_and_says_how_it_is_run(path):
    assert make_config(read_toml(path))
    assert f"--config configs/{path.name}" in path.read_text()


@pytest.mark.slow
def test_the_training_loop_of_the_readme_saves_the_memory_it_says(capsys):
    (block,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    exec(compile(block, "README", "exec"), {})
    saved = {line.split()[0]: int(line.split()[1]) for line in capsys.readouterr().out.splitlines()}
    assert saved["vanilla"] > 2 * saved["exact"]
    assert saved["exact"] > saved["hosvd:variance=0.8"] > saved["transform"]


def test_pictures_are_there():
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", README)
    assert pictures
    assert all((ROOT / picture).is_file() for picture in pictures)


def test_ci_runs_the_readmes_own_commands():
    script = (ROOT / ".ci" / "run").read_text()
    needles = re.findall(r"readme_command '(.*?)'", script)
    assert len(needles) == 2
    assert all(any(needle in line for line in README.splitlines()) for needle in needles)
