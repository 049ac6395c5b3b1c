"""A client trains from the server's initial weights alone."""

import pytest

from fedact.config.errors import ConfigError
from fedact.config.loading import make_config
from fedact.federation import client
from fedact.training.workspace import workspace_of
from tests.support.runs import FEW_SETTINGS


def test_a_process_that_starts_from_other_weights_trains_nothing():
    key = make_config({**FEW_SETTINGS, "layers": 1}).model_dump_json()
    here = workspace_of(key).experiment.start_digest
    assert client.ordered_workspace({"experiment": key, "start": here}) is workspace_of(key)
    with pytest.raises(ConfigError, match=rf"initial weights are 00000000, and here they are {here[:8]}"):
        client.ordered_workspace({"experiment": key, "start": "0" * 32})
