"""Every 4-dimensional module that PyTorch tests itself has plain autograd's gradient between two convolutions."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize(
    ("every", "least"), [(7, 40), pytest.param(1, 300, marks=pytest.mark.slow)], ids=["every seventh", "all"]
)
def test_pytorchs_own_modules_between_two_convolutions(every, least):
    command = [sys.executable, "-m", "tests.support.module_inputs", str(every)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"torch moved its module inputs?\n{done.stderr}"
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["wrong"] == {}
    assert found["refused"] == []
    assert found["count"] >= least
