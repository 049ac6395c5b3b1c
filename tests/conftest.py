import os
import re
from pathlib import Path

import pytest
import torch
from hypothesis import is_hypothesis_test, settings

from tests.support.portions import PORTIONS

for profile, count in PORTIONS.items():
    # Shared machines stall: a deadline would measure them, not the code. Derandomised, so that a failure repeats.
    settings.register_profile(profile, max_examples=count, deadline=None, derandomize=True, print_blob=True)
torch.set_num_threads(1)


def pytest_configure(config):
    settings.load_profile("exhaustive" if is_exhaustive(config) else "ci")


def is_exhaustive(config) -> bool:
    return re.search(r"(?<!not )\bexhaustive\b", config.option.markexpr) is not None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """With ``-m exhaustive`` properties run too, on all of their examples."""
    for item in items if is_exhaustive(config) else ():
        if is_hypothesis_test(getattr(item, "obj", None)):
            item.add_marker(pytest.mark.exhaustive)


@pytest.fixture(autouse=True)
def no_inherited_environment(monkeypatch, tmp_path_factory):
    """Nothing is read from or written to the home folder, but for the development data; tables are as wide as in a file."""
    # pytest-xdist tells its workers the terminal's width.
    monkeypatch.delenv("COLUMNS", raising=False)
    # A test of workers asks for them.
    monkeypatch.setenv("FEDACT_WORKERS", "1")
    monkeypatch.setenv("FEDACT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def development_data() -> Path:
    folder = Path(os.environ.get("FEDACT_DATA") or "~/.cache/fedact/data").expanduser()
    if not (folder / "cifar10.npz").exists():
        pytest.skip(f"no development data in {folder}")
    return folder
