import tomllib
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedact.config.budgets import parse_budget
from fedact.config.errors import EXTRAS, ConfigError, check_extra
from fedact.config.loading import make_config, read_toml
from fedact.config.paths import cache_folder
from fedact.config.schema import SETTINGS, Config
from fedact.simulate import parser


def test_no_settings_give_the_documented_defaults():
    config = make_config({})
    assert (config.clients, config.rounds, str(config.budget), config.scope) == (20, 10, "512KB", "peak")
    assert (config.method, config.layers, config.model, config.dataset) == (("hosvd",), "auto", "mobilenet_v2", "digits")
    assert (config.seed, config.sample_fraction) == (0, 1)
    assert config.partition == "dirichlet:alpha=0.3"


def test_one_size_is_every_clients():
    assert make_config({"budget": "512KiB", "clients": 3}).client_budgets() == (524288,) * 3


def test_none_bounds_nothing():
    assert make_config({"budget": "none", "clients": 2}).client_budgets() == (None, None)


def test_a_mix_deals_exact_counts():
    budgets = make_config({"budget": "256KB:10,512KB:6,4MB:4"}).client_budgets()
    assert Counter(budgets) == {256_000: 10, 512_000: 6, 4_000_000: 4}


def test_shares_are_rounded_by_largest_remainder():
    budgets = make_config({"budget": "1KB:1,2KB:1,none:1", "clients": 10}).client_budgets()
    assert sorted(Counter(budgets).values()) == [3, 3, 4]
    budgets = make_config({"budget": "1KB:0.05,2KB:0.95", "clients": 20}).client_budgets()
    assert Counter(budgets) == {1000: 1, 2000: 19}


def test_a_mix_is_shuffled_by_seed():
    def budgets(seed):
        return make_config({"budget": "256KB:10,4MB:10", "seed": seed}).client_budgets()

    assert budgets(0) == budgets(0)
    assert len({budgets(seed) for seed in range(4)}) > 1
    assert budgets(0) != tuple(sorted(budgets(0)))


def test_a_list_has_one_budget_for_each_client_in_their_order():
    config = make_config({"budget": "64KB/none/esp32-s3/1KiB", "clients": 4})
    first, second, third, fourth = config.client_budgets()
    assert (first, second, fourth) == (64_000, None, 1024)
    assert third == make_config({"budget": "esp32-s3", "clients": 1}).client_budgets()[0]
    assert make_config(tomllib.loads(config.to_toml())) == config


@pytest.mark.parametrize("budget", ["1KB/none", "1KB/none/1KB/", "1KB:1/none/1KB", "1KB,1KB/none/1KB", "//", "1KB/none/x"])
def test_a_list_of_another_length_or_of_no_sizes_is_refused(budget):
    with pytest.raises(ConfigError):
        make_config({"budget": budget, "clients": 3})


def test_an_address_of_a_cluster_is_for_ray():
    assert make_config({"runtime": "ray", "ray_address": "auto"}).ray_address == "auto"
    for runtime in ("local", "flower"):
        with pytest.raises(ConfigError, match="is for --runtime ray"):
            make_config({"runtime": runtime, "ray_address": "auto"})


@given(st.integers(1, 60), st.lists(st.integers(1, 50), min_size=1, max_size=5), st.integers(0, 9))
def test_counts_differ_from_their_share_by_less_than_one(clients, shares, seed):
    budget = ",".join(f"{position + 1}KB:{share}" for position, share in enumerate(shares))
    counts = Counter(make_config({"budget": budget, "clients": clients, "seed": seed}).client_budgets())
    assert sum(counts.values()) == clients
    for position, share in enumerate(shares):
        assert abs(counts[1000 * (position + 1)] - clients * share / sum(shares)) < 1


@given(st.text("0159KBMi:,.-none ", max_size=20))
def test_any_text_is_a_budget_or_a_config_error(text):
    try:
        budget = parse_budget(text)
    except ConfigError:
        return
    assert budget.text == text
    assert all(size is None or size > 0 for size in budget.sizes)
    assert all(0 < share < float("inf") for share in budget.shares)
    assert len(budget.sizes) == len(budget.shares)


def test_the_same_budget_with_blanks_is_the_same():
    assert parse_budget("256KB:10,none:2") == parse_budget(" 256KB : 10 , none : 2 ")


@given(st.sampled_from(["512KB", "512000", "none", "256KB:10, 512KiB:6", "64KB/none", "1KB:0.5,1KB:0.5"]))
def test_a_budget_is_parsed_once_and_written_as_it_was(text):
    config = make_config({"budget": text, "clients": 2})
    assert config.budget == parse_budget(text)
    assert config.model_dump()["budget"] == tomllib.loads(config.to_toml())["budget"] == str(config.budget) == text
    assert make_config({**dict(config), "clients": 2}) == config


def test_every_error_is_named_at_once():
    with pytest.raises(ConfigError) as caught:
        make_config({"clients": 0, "lr": "fast", "budget": "5XB", "roundz": 3, "method": ["a", "a"], "seed": -1})
    message = str(caught.value)
    assert all(word in message for word in ("clients is 0", "'fast'", "5XB", "did you mean 'rounds'", "once", "seed is -1"))
    assert "\n" not in message


@pytest.mark.parametrize("key", ["clients", "rounds", "seed", "lr", "batch_size"])
@pytest.mark.parametrize("value", [True, None, [], {}, "", "x", float("nan"), float("inf")])
def test_what_is_no_number_is_no_number(key, value):
    with pytest.raises(ConfigError, match=key.replace("_", "-")):
        make_config({key: value})


def test_a_config_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        make_config({}).clients = 3


settings = st.fixed_dictionaries(
    {},
    optional={
        "clients": st.integers(1, 10**6),
        "rounds": st.integers(0, 1000),
        "budget": st.sampled_from(["512KB", "none", "256KB:10,512KB:6,4MB:4", " 1KiB "]),
        "method": st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=3, unique=True),
        "layers": st.integers(0, 99) | st.just("auto"),
        "width": st.none() | st.floats(0.01, 4),
        "data_dir": st.none() | st.sampled_from(["/a/b", "with space", 'quo"te', "back\\slash", "ü"]),
        "max_examples": st.none() | st.integers(1, 10**6),
        "lr": st.floats(1e-300, 1e6),
        "momentum": st.floats(0, 0.999),
        "seed": st.integers(0, 2**32 - 1),
        "out": st.none() | st.just("runs/x"),
        "partition": st.text(max_size=20),
        "strategy": st.sampled_from(["fedavg", "fedadam:eta=0.30,tau=1e-05", "trimmed_mean:beta=0.1"]),
        "privacy": st.sampled_from(["none", "local_dp", "local_dp:clipping_norm=2,sensitivity=1,epsilon=8,delta=0.001"]),
        "faults": st.sampled_from(["none", "drop=0.1", "drop=0.1,slow=0.05,corrupt=0.01,lag=3"]),
        "deadline": st.none() | st.floats(1e-300, 1e300),
        "device": st.sampled_from(["cpu", "cuda", "cuda:1"]),
    },
)


@given(settings)
def test_toml_reads_back_as_an_equal_config(settings):
    config = make_config(settings)
    assert make_config(tomllib.loads(config.to_toml())) == config


@given(settings)
def test_json_reads_back_as_an_equal_config(settings):
    config = make_config(settings)
    assert Config.model_validate_json(config.model_dump_json()) == config


def test_a_file_may_write_keys_with_dashes(tmp_path):
    (tmp_path / "a.toml").write_text("batch-size = 3\nlocal_epochs = 4\nmethod = 'exact'")
    assert read_toml(tmp_path / "a.toml") == {"batch_size": 3, "local_epochs": 4, "method": "exact"}


def test_a_key_written_both_ways_is_refused(tmp_path):
    (tmp_path / "a.toml").write_text("batch-size = 3\nbatch_size = 4")
    with pytest.raises(ConfigError, match="batch"):
        read_toml(tmp_path / "a.toml")


@pytest.mark.parametrize("content", [b"clients = ", b"clients", b"\xff\xff", b"a = 1\na = 2", b"[a\n"])
def test_what_is_no_toml_is_refused(tmp_path, content):
    (tmp_path / "a.toml").write_bytes(content)
    with pytest.raises(ConfigError, match="not TOML"):
        read_toml(tmp_path / "a.toml")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"missing\.toml"):
        read_toml(tmp_path / "missing.toml")


def test_every_field_has_a_flag_and_a_description():
    flags = {action.dest: action for action in parser()._actions}
    for name in SETTINGS:
        assert name in flags
        assert Config.model_fields[name].description
    assert set(Config.model_fields) == {*SETTINGS, "code"}


def test_a_folder_with_the_name_of_a_package_is_none(monkeypatch, tmp_path):
    monkeypatch.setitem(EXTRAS, "hub", ("no_such_package",))
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "no_such_package").mkdir()
    with pytest.raises(ConfigError, match="needs the extra hub, which is not installed"):
        check_extra("hub", "--dataset hf:x")


def test_data_lies_where_the_flag_the_variable_or_the_cache_says(monkeypatch, tmp_path):
    monkeypatch.setenv("FEDACT_CACHE", str(tmp_path))
    monkeypatch.delenv("FEDACT_DATA", raising=False)
    assert make_config({}).data_path() == tmp_path / "data" == cache_folder() / "data"
    monkeypatch.setenv("FEDACT_DATA", "~/elsewhere")
    assert make_config({}).data_path() == Path("~/elsewhere").expanduser()
    assert make_config({"data_dir": "~/here"}).data_path() == Path("~/here").expanduser()
