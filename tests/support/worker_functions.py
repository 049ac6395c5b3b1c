"""Functions that tests call in workers, which look them up by name."""

import logging
import multiprocessing
import os
import signal
import time

import torch


def double(value):
    return 2 * value


def whoami(_):
    return os.getpid()


def threads(_):
    return torch.get_num_threads()


def fails(text):
    raise ValueError(text)


def says(value):
    logging.getLogger("fedact.said").info("value %s", value)
    return value


def dies_in_a_worker(value):
    if multiprocessing.parent_process() is not None:
        os._exit(1)
    return value


class TwoArguments(Exception):
    def __init__(self, first, second):
        super().__init__(f"{first}, {second}")


def fails_strangely(_):
    raise TwoArguments(1, 2)


def returns_a_function(_):
    return lambda: None


def ends(code):
    os._exit(code)


def kills_itself(_):
    os.kill(os.getpid(), signal.SIGKILL)


def ends_where_negative(value):
    return os._exit(3) if value < 0 else value


STATE = {}


def remember(value):
    STATE["value"] = STATE.get("value", 0) + value


def remembered(_):
    time.sleep(0.05)
    return os.getpid(), STATE.get("value")


def sleep_long(folder):
    (folder / str(os.getpid())).touch()
    time.sleep(600)


def nested(values):
    from fedact.processes.pool import Workers

    with Workers(4) as workers:
        return workers.count, [outcome.value for outcome in workers.map(whoami, values)]


def die_as(order):
    """Let the worker that plays this client in this round be killed."""
    from fedact.federation import client

    number, mortal = order
    train_on = client.train_on

    def train_or_die(workspace, message):
        asked = message.content["config"]
        if (asked["round"], asked["client"]) == (number, mortal):
            os.kill(os.getpid(), signal.SIGKILL)
        return train_on(workspace, message)

    client.train_on = train_or_die
