import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# Shared machines stall: a deadline would measure them, not the code. Derandomised, so that a failure repeats.
settings.register_profile("fedact", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("fedact")
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_inherited_folders(monkeypatch, tmp_path_factory):
    """Nothing is read from or written to the home folder, but for the development data."""
    monkeypatch.setenv("FEDACT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def development_data() -> Path:
    folder = Path(os.environ.get("FEDACT_DATA") or "~/.cache/fedact/data").expanduser()
    if not (folder / "cifar10.npz").exists():
        pytest.skip(f"no development data in {folder}")
    return folder
