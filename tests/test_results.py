"""The documentation's tables are those of the files in results/."""

import json
import runpy
from pathlib import Path

import pytest

from fedact.config.errors import ConfigError
from fedact.storage.machine import machine

ROOT = Path(__file__).parent.parent
results = runpy.run_path(str(ROOT / "benchmarks/results.py"))
outdated, markdown, write_result = results["outdated"], results["markdown"], results["write_result"]
TABLE = {"columns": ["method", "bytes", "error"], "rows": [["exact", 2581124, 0.0], ["hosvd", 120000, None]]}
WHOLE = "| method | bytes | error |\n| --- | --- | --- |\n| `exact` | 2,581,124 | 0 |\n| `hosvd` | 120,000 | - |\n"


@pytest.fixture
def root(tmp_path) -> Path:
    (tmp_path / "docs/deep").mkdir(parents=True)
    (tmp_path / "README.md").write_text("A page.\n\n<!-- table: made | method, bytes -->\n<!-- end table -->\n\nIts end.\n")
    (tmp_path / "docs/deep/page.md").write_text("<!-- table: made -->\nanything\n<!-- end table -->\n")
    facts = {
        "machine": {"processor": "a processor", "cores": 2},
        "versions": {"python": "3.11.7", "torch": "2.14.1"},
        "threads": 2,
        "seeds": [0, 1],
        "commit": "abc",
    }
    write_result("made", "python -m fedact.bench", {"default": TABLE}, **facts, root=tmp_path)
    return tmp_path


def test_no_table_of_the_documentation_is_out_of_date():
    assert outdated() == []


def test_every_result_names_its_command_commit_machine_versions_threads_and_seeds():
    for file in (ROOT / "results").glob("*.json"):
        result = json.loads(file.read_text())
        assert result["name"] == file.stem
        for measured in result.get("entries", [result]):
            assert {"commit", "machine", "versions", "threads"} < set(measured)
            # What was measured before machines were recorded says so.
            assert measured["machine"] == "not recorded" or set(measured["machine"]) == set(machine())
        if "tables" in result:
            assert {"command", "seeds"} < set(result)


def test_tables_that_are_out_of_date_are_named_and_written(root):
    stale = ["README.md: made | method, bytes", "docs/deep/page.md: made"]
    assert outdated(root) == stale
    assert outdated(root, write=True) == stale
    assert outdated(root) == []
    assert (root / "docs/deep/page.md").read_text() == f"<!-- table: made -->\n{WHOLE}<!-- end table -->\n"
    page = (root / "README.md").read_text()
    assert page.startswith("A page.\n\n<!-- table")
    assert page.endswith("| `hosvd` | 120,000 |\n<!-- end table -->\n\nIts end.\n")
    file = root / "results/made.json"
    file.write_text(file.read_text().replace("120000", "120001"))
    assert outdated(root) == stale


def test_what_a_reader_must_know_of_old_figures_follows_their_table(root):
    file = root / "results/made.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"note": "Measured otherwise."}))
    assert markdown("made", root) == f"{WHOLE}\nMeasured otherwise.\n"


def test_a_table_can_be_turned_and_name_its_source(root):
    assert markdown("made transposed | method, bytes", root) == (
        "|  | `exact` | `hosvd` |\n| --- | --- | --- |\n| bytes | 2,581,124 | 120,000 |\n"
    )
    assert markdown("made source", root) == (
        f"{WHOLE}\n`python -m fedact.bench` (commit abc, a processor, 2 cores, python 3.11.7, torch 2.14.1, threads 2, "
        "seeds 0, 1)\n"
    )


@pytest.mark.parametrize("what", ["none", "made.other", "made sideways", "made | method, size"])
def test_what_there_is_not_is_refused(what, root):
    with pytest.raises(ConfigError, match=r"there is no results/none\.json|columns"):
        markdown(what, root)


def test_a_block_without_its_end_is_refused(root):
    (root / "README.md").write_text("<!-- table: made -->\n")
    with pytest.raises(ConfigError, match=r"README\.md"):
        outdated(root)
