"""A client trains from the server's initial weights alone."""

import pytest

from fedact.config.errors import ConfigError
from fedact.config.loading import make_config
from fedact.federation import client, round_scores
from fedact.simulate import main
from fedact.training.workspace import close_workspaces, workspace_of
from tests.support.runs import FEW, FEW_SETTINGS, rows


def test_a_process_that_starts_from_other_weights_trains_nothing():
    key = make_config({**FEW_SETTINGS, "layers": 1}).model_dump_json()
    here = workspace_of(key).experiment.start_digest
    assert client.ordered_workspace({"experiment": key, "start": here}) is workspace_of(key)
    with pytest.raises(ConfigError, match=rf"initial weights are 00000000, and here they are {here[:8]}"):
        client.ordered_workspace({"experiment": key, "start": "0" * 32})


def test_methods_share_the_first_evaluation_which_is_that_of_each_alone(tmp_path, monkeypatch):
    evaluated, evaluate = [], round_scores.evaluate_on_test_set
    monkeypatch.setattr(round_scores, "evaluate_on_test_set", lambda *given: evaluated.append(1) or evaluate(*given))

    def first_rounds(name: str, *methods: str) -> list[dict]:
        close_workspaces()
        words = [word for method in methods for word in ("--method", method)]
        main([*FEW, *words, "--budget", "none", "--rounds", "1", "--workers", "1", "--out", str(tmp_path / name)])
        found = (row for row in rows(tmp_path / name) if row["kind"] == "round" and row["round"] == 0)
        return [{**row, "seconds": None} for row in found]

    together = first_rounds("together", "exact", "quantize", "vanilla")
    assert len(evaluated) == 2 + 3
    assert together == [first_rounds(name, name)[0] for name in ("exact", "quantize", "vanilla")]
