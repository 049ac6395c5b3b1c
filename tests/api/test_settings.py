"""Keywords of fedact.run, written as the command line has them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fedact.api.settings import config_of
from fedact.config.errors import ConfigError
from fedact.config.loading import make_config

SAME = [
    ({"budget": 512_000}, {"budget": "512000"}),
    ({"budget": np.int64(512_000)}, {"budget": "512000"}),
    ({"budget": None}, {"budget": "none"}),
    ({"budget": ["64KB", None, 1000], "clients": 3}, {"budget": "64KB/none/1000", "clients": 3}),
    ({"budget": {"64KB": 10, 2000: 6, None: 4}}, {"budget": "64KB:10,2000:6,none:4"}),
    ({"method": "exact"}, {"method": ("exact",)}),
    ({"method": ["exact", "hosvd:variance=0.8"]}, {"method": ("exact", "hosvd:variance=0.8")}),
    ({"faults": {"drop": 0.1, "slow": 0.05}}, {"faults": "drop=0.1,slow=0.05"}),
    ({"cache_size": 1_000_000}, {"cache_size": "1000000"}),
    ({"layers": np.int32(4), "lr": np.float32(0.5)}, {"layers": 4, "lr": 0.5}),
    ({"device": torch.device("cpu"), "flip": True}, {"device": "cpu", "flip": True}),
    ({"data_dir": Path("a"), "weights": Path("b.pth"), "out": "c"}, {"data_dir": "a", "weights": "b.pth", "out": "c"}),
    ({"resolution": None, "deadline": None}, {}),
    ({"partition": "shards:per_client=2", "seeds": 3}, {"partition": "shards:per_client=2", "seeds": 3}),
]


@pytest.mark.parametrize(("keywords", "settings"), SAME, ids=[str(settings) for _, settings in SAME])
def test_a_keyword_is_the_flag_of_its_name(keywords, settings):
    assert config_of(keywords) == make_config(settings)


@pytest.mark.parametrize(
    ("keywords", "said"),
    [
        ({"rounds": 2.5}, "--rounds is 2.5"),
        ({"rounds": True}, "true and false are no setting"),
        ({"method": 3}, "method is 3"),
        ({"method": []}, "--method is ()"),
        ({"strategy": ["fedavg"]}, "strategy is ['fedavg']: it is a text"),
        ({"budget": "much"}, "much"),
        ({"code": {}}, "fedact.run has no keyword 'code'"),
    ],
)
def test_a_bad_keyword_is_one_line(keywords, said):
    with pytest.raises(ConfigError) as error:
        config_of(keywords)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
