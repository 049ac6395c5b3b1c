"""What of Flower is private, and must be looked at again when Flower moves it."""

import importlib

from flwr.app import Error, Message, RecordDict
from flwr.clientapp import ClientApp

from fedact.federation.local_grid import CLIENT_RAISED, LocalGrid


def echo_app() -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message, context):
        if context.node_config["partition-id"] == 1:
            raise ValueError("no more memory")
        return Message(message.content, reply_to=message)

    return app


def test_flower_still_has_the_private_parts_that_local_grid_touches():
    identity = importlib.import_module("flwr.supercore.task_identity").TaskIdentity
    LocalGrid(echo_app(), clients=1)
    assert (identity.task_id, identity.run_id, identity.node_id) == (1, 1, 1)
    assert importlib.import_module("flwr.common.constant").ErrorCode.CLIENT_APP_RAISED_EXCEPTION == CLIENT_RAISED


def test_a_message_finds_its_client_and_an_exception_comes_back_as_an_error():
    grid = LocalGrid(echo_app(), clients=2)
    first, second = grid.get_node_ids()
    replies = list(grid.send_and_receive([Message(RecordDict(), node, "train") for node in (first, second)]))
    assert [reply.metadata.src_node_id for reply in replies] == [first, second]
    assert [reply.has_error() for reply in replies] == [False, True]
    assert isinstance(replies[1].error, Error)
    assert replies[1].error.reason == "ValueError: no more memory"


def test_pushed_messages_are_pulled_once():
    grid = LocalGrid(echo_app(), clients=1)
    names = list(grid.push_messages([Message(RecordDict(), next(iter(grid.get_node_ids())), "train")]))
    assert len(list(grid.pull_messages(names))) == 1
    assert list(grid.pull_messages(names)) == []
    assert grid.run.run_id == 1


def test_a_reply_is_made_only_when_it_is_asked_for():
    grid, asked = LocalGrid(echo_app(), clients=1), []
    node = next(iter(grid.get_node_ids()))

    def messages():
        for number in range(3):
            asked.append(number)
            yield Message(RecordDict(), node, "train")

    next(iter(grid.send_and_receive(messages())))
    assert asked == [0]
