"""What many clients cost: figures are printed, memory and counts are asserted, time never is."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from fedact.data.readers.synthetic import SIDE

TINY = [
    "--dataset", "synthetic", "--weights", "none", "--layers", "0", "--budget", "none", "--method", "vanilla",
    "--width", "0.25", "--resolution", "32", "--local-epochs", "1", "--max-test-examples", "100", "--rounds", "2",
]  # fmt: skip
CHILD = """
import sys, time
from fedact.storage import run_folder as records
append = records.RunFolder.append
def timed(self, rows):
    append(self, rows)
    print(f"MARK {time.process_time():.1f}")
records.RunFolder.append = timed
from fedact.simulate import main
code = main(sys.argv[1:])
# Not getrusage: its maximum counts what the parent had, too.
print("PEAK", next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
sys.exit(code)
"""


@dataclass(frozen=True)
class Measured:
    """A child's CPU seconds when the header, round 0, round 1 and so on were written; the most memory it had, in bytes."""

    seconds: list[float]
    peak: float
    rows: list[dict]


def measured(folder: Path, clients: int, sampled: int, examples: int) -> Measured:
    fleet = ["--clients", str(clients), "--sample-fraction", str(sampled / clients), "--max-examples", str(examples)]
    command = [sys.executable, "-c", CHILD, *TINY, *fleet, "--out", str(folder)]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    lines = [line.split() for line in out.splitlines() if line.startswith(("MARK", "PEAK"))]
    found = {word: [float(number) for name, number in lines if name == word] for word in ("MARK", "PEAK")}
    rows = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    result = Measured(found["MARK"], found["PEAK"][0] * 1024, rows)
    print(
        f"{clients:>7,} clients, {sampled} a round, {examples:>9,} examples: start-up {result.seconds[0]:.1f} s, "
        f"last round {result.seconds[-1] - result.seconds[-2]:.1f} s, peak RSS {result.peak / 1e6:,.0f} MB"
    )
    return result


def clients_by_round(rows: list[dict]) -> list[int]:
    return [row["clients"] for row in rows if row["kind"] == "round"]


@pytest.mark.exhaustive
def test_a_thousand_clients_need_no_more_memory_than_twenty(tmp_path):
    few, many = measured(tmp_path / "few", 20, 20, 11_000), measured(tmp_path / "many", 1000, 100, 11_000)
    assert many.peak < few.peak + 100e6
    assert clients_by_round(few.rows) == [0, 20, 20]
    assert clients_by_round(many.rows) == [0, 100, 100]
    assert {row["status"] for row in many.rows if row["kind"] == "client"} == {"head-only"}


@pytest.mark.exhaustive
def test_a_round_has_as_many_rows_as_clients_were_sampled_of_a_thousand(tmp_path):
    for sampled in (25, 50, 100, 200):
        run = measured(tmp_path / str(sampled), 1000, sampled, 11_000)
        assert clients_by_round(run.rows) == [0, sampled, sampled]
        numbers = [[row["client"] for row in run.rows if row["kind"] == "client" and row["round"] == n] for n in (1, 2)]
        assert all(len(set(each)) == sampled and max(each) < 1000 for each in numbers)


@pytest.mark.exhaustive
def test_a_hundred_thousand_clients_need_their_images_and_little_else(tmp_path):
    few, many = measured(tmp_path / "few", 20, 20, 11_000), measured(tmp_path / "many", 100_000, 100, 1_001_000)
    images = (1_001_000 - 11_000) * SIDE * SIDE * 3
    assert many.peak < few.peak + images + 200e6
    assert clients_by_round(many.rows) == [0, 100, 100]


@pytest.fixture(scope="module")
def imported() -> set[str]:
    """What a session has imported before it knows what it will do."""
    code = "import sys, fedact.cli.simulate; print(*{name.split('.')[0] for name in sys.modules})"
    return set(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split())


@pytest.mark.parametrize("library", ["pandas", "matplotlib", "sklearn", "tensorly", "scipy"])
def test_nothing_is_imported_before_the_first_round_that_only_its_end_needs(library, imported):
    assert "torch" in imported
    assert library not in imported
