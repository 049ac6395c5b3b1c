"""The server and its nodes in one process: who is asked, who is left out, what travels, and what a node refuses."""

import json
import logging

import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict

import fedact
from fedact import flower_app
from fedact.config.errors import ConfigError
from fedact.config.loading import make_config
from fedact.config.plan import Plan
from fedact.config.schema import Config
from fedact.config.toml import read_table
from fedact.federation.fleet import Fleet, exchange
from fedact.federation.local_grid import RUN_ID, LocalGrid
from fedact.federation.node import cache_weights, cached_weights, device_config, read_node
from fedact.flower_app import NODE_WAIT, RESUME, client_app, read_run_config, run, run_config_keys
from fedact.simulate import main
from fedact.storage.checkpoints import digest
from tests.support.fleets import REPOSITORY, SMALL
from tests.support.runs import timeless


class Nodes(LocalGrid):
    """Nodes with these node configs; a message to a lost one is never answered."""

    def __init__(self, *configs, lost=()):
        super().__init__(client_app, len(configs))
        self.configs, self.lost, self.sent = configs, set(lost), []

    def push_messages(self, messages):
        for message in messages:
            message.metadata.__dict__["_message_id"] = f"message-{len(self.sent)}"
            self.sent.append(message)
        names = [message.metadata.message_id for message in messages]
        for message, name in zip(messages, names, strict=True):
            if message.metadata.dst_node_id not in self.lost:
                self.replies[name] = self.reply(message)
        return names

    def context_of(self, message):
        node = message.metadata.dst_node_id
        return Context(RUN_ID, node, self.configs[node - 2], RecordDict(), {})


def holder(partition, partitions, **settings):
    return {
        "partition-id": partition,
        "num-partitions": partitions,
        **{key.replace("_", "-"): v for key, v in settings.items()},
    }


def settings_of(**given):
    defaults = dict.fromkeys(run_config_keys(), "")
    return {**defaults, NODE_WAIT: 0.1, **{k: v for k, v in SMALL.items() if k != NODE_WAIT}, **given}


@pytest.fixture
def plan(tmp_path):
    assert main(["--dataset", "digits", "--rounds", "0", "--weights", "none", "--clients", "2", "--method", "exact",
                 "--resolution", "32", "--layers", "0", "--out", str(tmp_path / "plan")]) == 0  # fmt: skip
    return Plan.from_json(json.dumps(fedact.load_run(tmp_path / "plan").plans["exact"]["512000"]))


def test_rows_are_those_of_a_local_run_with_the_nodes_budgets(tmp_path):
    nodes = Nodes(holder(1, 3, memory_budget="75KB"), holder(0, 3), holder(2, 3, memory_budget="none"))
    assert run(nodes, settings_of(clients=3, rounds=2, out=str(tmp_path / "run"))) == 0
    config = make_config(read_table("config", tmp_path / "run" / "config.toml"))
    assert config.client_budgets() == (100_000, 75_000, None)
    assert main(["--config", str(tmp_path / "run" / "config.toml"), "--runtime", "local", "--out", str(tmp_path / "l")]) == 0
    assert timeless(tmp_path / "run") == timeless(tmp_path / "l")


def test_the_start_travels_once_and_each_plan_to_its_node(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDACT_CACHE", str(tmp_path / "cache"))
    nodes = Nodes(holder(0, 2, memory_budget="75KB"), holder(1, 2))
    assert run(nodes, settings_of(clients=2, rounds=2, out=str(tmp_path / "run"))) == 0
    orders = [message.content for message in nodes.sent if message.metadata.message_type == "train"]
    assert [bool(order["start"]) for order in orders] == [True, True, False, False]
    budgets = [Plan.from_json(order["config"]["plan"]).budget_bytes for order in orders]
    assert budgets == [75_000, 100_000] * 2
    assert str(tmp_path) not in "".join(str(dict(order["config"])) for order in orders)
    assert [f"{name}.safetensors" for name in cached_weights()] == [
        f.name for f in (tmp_path / "cache" / "starts").iterdir()
    ]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (holder(5, 2), "partition-id is 5, of num-partitions=2"),
        (holder(1, 20), "num-partitions=20, the run has clients=2"),
        (holder(0, 2), "two nodes say partition-id=0"),
        (holder(1, 2, memory_budget="many"), "many"),
        (holder(1, 2, memory_budget="1KB:1,2KB:1"), "a node has one size"),
        (holder(1, 2, memory_buget="1KB"), "did you mean 'memory-budget'"),
        (holder("1", 2), "it is a whole number"),
        ({}, "partition-id is missing"),
    ],
)
def test_a_node_that_says_nonsense_is_one_line_and_its_partition_a_failed_row(config, words, tmp_path, caplog):
    nodes = Nodes(holder(0, 2), config)
    with caplog.at_level(logging.WARNING):
        assert run(nodes, settings_of(clients=2, out=str(tmp_path / "run"))) == 1
    left_out = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert len(left_out) == 1
    assert words in left_out[0]
    rows = fedact.load_run(tmp_path / "run").clients
    assert rows[["client", "status"]].to_numpy().tolist() == [[0, "ok"], [1, "failed"]]
    assert rows["reason"].tolist()[1] == "no node holds this partition"


def test_a_node_that_never_answers_is_a_failed_row_and_a_spare_takes_its_place(tmp_path):
    nodes = Nodes(holder(0, 2), holder(1, 2), holder(1, 2))
    settings = settings_of(clients=2, rounds=2, out=str(tmp_path / "run"), deadline=5)
    answer = nodes.reply

    def lose_the_second_after_its_query(message):
        reply = answer(message)
        if message.metadata.message_type == "query" and message.metadata.dst_node_id == 3:
            nodes.lost.add(3)
        return reply

    nodes.reply = lose_the_second_after_its_query
    assert run(nodes, settings) == 1
    rows = fedact.load_run(tmp_path / "run").clients
    assert rows["status"].tolist() == ["ok", "failed", "ok", "ok"]
    assert rows["reason"].tolist()[1] == "no reply within 5 seconds"


def test_without_any_node_there_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match="no node with a partition came within"):
        run(Nodes(), settings_of(clients=2, out=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()


def test_a_stopped_run_goes_on_and_equals_an_uninterrupted_one(tmp_path, monkeypatch):
    fleet = (holder(0, 2, memory_budget="75KB"), holder(1, 2))
    assert run(Nodes(*fleet), settings_of(clients=2, rounds=3, out=str(tmp_path / "whole"))) == 0
    finish = fedact.federation.server.PartialFedAvg.finish_round

    def break_off(self, server_round, arrays):
        if server_round == 2:
            raise ZeroDivisionError
        return finish(self, server_round, arrays)

    monkeypatch.setattr("fedact.federation.server.PartialFedAvg.finish_round", break_off)
    with pytest.raises(ZeroDivisionError):
        run(Nodes(*fleet), settings_of(clients=2, rounds=3, out=str(tmp_path / "run")))
    monkeypatch.undo()
    other = (holder(0, 2, memory_budget="74KB"), holder(1, 2))
    with pytest.raises(ConfigError, match="no node"):
        run(Nodes(other[0]), settings_of(**{RESUME: str(tmp_path / "run")}))
    assert run(Nodes(*fleet), settings_of(**{RESUME: str(tmp_path / "run")})) == 0
    assert timeless(tmp_path / "run") == timeless(tmp_path / "whole")


def test_a_fleets_run_is_not_resumed_as_a_simulation(tmp_path, capsys):
    assert run(Nodes(holder(0, 1)), settings_of(clients=1, out=str(tmp_path / "run"))) == 0
    capsys.readouterr()
    assert main(["--resume", str(tmp_path / "run")]) == 2
    assert "flwr run" in capsys.readouterr().err


def test_pyproject_has_every_key_with_its_default():
    table = read_table("config", REPOSITORY / "pyproject.toml")["tool"]["flwr"]["app"]["config"]
    assert list(table) == run_config_keys()
    config, resume = read_run_config(table)
    assert resume is None
    assert config == Config(runtime="flower")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"round": 3}, "did you mean 'rounds'"),
        ({"rounds": -1}, "--rounds is -1"),
        ({RESUME: "nowhere"}, "there is no run"),
        ({"runtime": "ray"}, "unknown key"),
    ],
)
def test_a_run_config_that_is_wrong_is_one_line(given, words):
    with pytest.raises(ConfigError, match=words) as error:
        read_run_config(given)
    assert len(str(error.value).splitlines()) == 1


def test_flower_logs_a_users_error_without_a_traceback_and_others_with_theirs(caplog):
    logger = logging.getLogger("flower-like")
    logger.addFilter(flower_app.without_traceback)
    for error in (ConfigError("one line"), ZeroDivisionError("a bug")):
        logger.error("ServerApp raised an exception", exc_info=error)
    assert [bool(record.exc_info) for record in caplog.records] == [False, True]


@pytest.mark.parametrize("value", ["", 0, -1, True, "soon", float("inf")])
def test_a_wait_is_a_number_of_seconds(value):
    with pytest.raises(ConfigError, match="number of seconds"):
        run(Nodes(holder(0, 1)), settings_of(clients=1, **{NODE_WAIT: value}))


def test_several_methods_are_written_with_spaces():
    config, _ = read_run_config({"method": "vanilla hosvd:variance=0.8"})
    assert config.method == ("vanilla", "hosvd:variance=0.8")


def test_a_node_takes_no_path_from_the_server(tmp_path):
    secret = tmp_path / "secret.toml"
    secret.write_text("no table of devices")
    sent = Config().model_dump(mode="json")
    sent.update(devices=str(secret), out="/etc", data_dir="/etc", weights=str(secret), ray_address="10.0.0.1:1")
    node = read_node(holder(0, 20, data_dir=str(tmp_path)))
    config = device_config(json.dumps(sent), node)
    assert config.data_dir == tmp_path
    assert "/etc" not in config.model_dump_json()
    assert str(secret) not in config.model_dump_json()


def test_a_node_refuses_what_is_another_s_or_more_than_it_has(plan):
    node = read_node(holder(1, 2, memory_budget="100KB"))
    with pytest.raises(ConfigError, match="holds partition 1, the order is for 0"):
        node.check(0, plan)
    with pytest.raises(ConfigError, match="this node has 100,000 bytes, the plan is for 512000"):
        node.check(1, plan)
    read_node(holder(1, 2, memory_budget="512KB")).check(1, plan)
    read_node(holder(1, 2)).check(1, plan)


def test_a_start_is_kept_under_the_name_of_its_content_and_only_the_last_few():
    starts = [{"a": torch.full((2,), float(number))} for number in range(5)]
    names = [digest(start) for start in starts]
    assert len(set(names)) == 5
    assert digest({"a": torch.zeros(2)}) != digest({"a": torch.zeros(1, 2)}) != digest({"b": torch.zeros(2)})
    for name, start in zip(names, starts, strict=True):
        cache_weights(name, start)
    assert names[-1] in cached_weights()
    assert len(cached_weights()) <= 3
    for wrong in (names[0], "../../weights", ""):
        with pytest.raises(ConfigError, match="are not those that were announced"):
            cache_weights(wrong, {"a": torch.ones(3)})


def test_a_train_order_that_names_a_path_as_its_start_is_an_error():
    order = ConfigRecord({"client": 0, "start": "../../etc/passwd", "plan": "{}", "experiment": "{}", "preprocessing": "{}"})
    reply = client_app(
        Message(RecordDict({"config": order, "start": flower_app.ArrayRecord({})}), 2, "train"),
        Context(RUN_ID, 2, holder(0, 1), RecordDict(), {}),
    )
    assert reply.has_error()


def test_a_message_that_cannot_be_sent_is_an_error_at_once():
    nodes = Nodes(holder(0, 1))
    nodes.push_messages = lambda messages: []
    replies = exchange(nodes, [Message(RecordDict(), 2, "query")], 60)
    assert "could not be sent" in replies[2].error.reason


def test_what_no_node_of_this_app_says_is_left_out(caplog):
    nodes = Nodes(holder(0, 1))
    nodes.reply = lambda message: Message(RecordDict({"node": ConfigRecord({"partition": "first"})}), reply_to=message)
    with caplog.at_level(logging.WARNING):
        assert Fleet(nodes, 1).query_new_nodes() == 0
    assert "answers as no node of this app does" in caplog.text
