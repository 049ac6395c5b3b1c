"""Whose each example is: CSV files, and which clients train, are held out, or are the server's."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedact.config.errors import ConfigError
from fedact.config.natural import NaturalClients, natural_clients, partition_in_full
from fedact.data.partition.natural import NOBODY, Owners, draw_roles, read_owners
from fedact.storage.partition_csv import partition_csv, read_partition

LABELS = np.arange(12) % 3


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def owners_of(text: str, tmp_path) -> Owners:
    file = tmp_path / "who.csv"
    file.write_bytes(text.encode())
    return read_owners(file, LABELS, rng())


@pytest.mark.parametrize(
    "text",
    [
        "example,client\n0,10\n3,2\n5,10\n",
        "\ufeffclient, example,score\r\n10,0,1\r\n2,3,5\r\n\r\n10,5,6\r\n",
        'example,client\n5,"10"\n3,2\n0,10',
    ],
)
def test_a_file_says_whose_each_example_is_and_numbers_have_their_order(text, tmp_path):
    owners = owners_of(text, tmp_path)
    assert owners.names == ("2", "10")
    assert owners.clients.tolist() == [1, -1, -1, 0, -1, 1, -1, -1, -1, -1, -1, -1]
    assert owners.sizes.tolist() == [1, 2]


def test_names_may_hold_commas_and_a_client_no_example(tmp_path):
    owners = owners_of('example,client\n,zoe\n1,"Ann, MD"\n2,7\n', tmp_path)
    assert (owners.names, owners.sizes.tolist()) == (("7", "Ann, MD", "zoe"), [1, 1, 0])


@given(whose=st.lists(st.integers(-1, 4), min_size=12, max_size=12).filter(lambda whose: max(whose) >= 0))
def test_a_runs_own_partition_csv_deals_as_many_of_each_label(whose, tmp_path_factory):
    clients = np.array(whose)
    own, folder = clients >= 0, tmp_path_factory.getbasetemp()
    for names in (None, ['a "b"', "c,d", "e", "x y", "Ü"]):
        text = partition_csv(clients[own], LABELS[own], names)
        (folder / "partition.csv").write_text(text, encoding="utf-8")
        owners = read_owners(folder / "partition.csv", LABELS, rng())
        shown = read_partition(folder / "partition.csv") if names else None
        for client in range(5):
            name = names[client] if names else str(client)
            held = np.bincount(LABELS[clients == client], minlength=3).tolist()
            number = owners.names.index(name) if name in owners.names else len(owners.names)
            assert np.bincount(LABELS[owners.clients == number], minlength=3).tolist() == held
            if shown is not None:
                assert shown[shown["name"] == name]["examples"].sum() == sum(held)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "line 1: its columns are example and client, but it has none"),
        (
            "example;client\n0;1\n",
            "line 1: its columns are example and client, not example;client, with commas between them",
        ),
        ("example,client,client\n0,1,2\n", "line 1: there are several columns client"),
        ("exampel,client\n0,1\n", "line 1: its columns are example and client, not exampel, client; did you mean 'exampel'"),
        ("example,client\n", "names no example's client"),
        ("example,client\n,ann\n", "names no example's client"),
        ("example,client\n0,ann\n12,bob\n", "line 3: there is no example 12, the training set has 12"),
        ("example,client\n0,ann\n0,bob\n", "line 3: example 0 is given twice, to 'ann' and to 'bob'"),
        ("example,client\n-1,ann\n", "line 2: an example is a whole number from 0, not '-1'"),
        ("example,client\n1.5,ann\n", "line 2: an example is a whole number"),
        ("example,client\n1\n", "line 2: a client is a number or a name"),
        ("example,client\n1,a\x07b\n", "line 2: a client is a number or a name"),
        (f"example,client\n1,{'a' * 201}\n", "line 2: a client is a number or a name of at most 200"),
        ('example,client\n1,"ann\n', "cannot be read: unexpected end of data"),
        ("client,label,examples\n0,0,5\n", "line 2: 5 examples of label 0, but only 4 are left"),
        ("client,label,examples\n0,7,1\n", "line 2: 1 examples of label 7, but only 0 are left"),
        ("client,label,examples\n0,0,x\n", "line 2: a number is a whole number"),
    ],
)
def test_a_file_that_says_anything_else_is_refused_with_its_line(text, said, tmp_path):
    with pytest.raises(ConfigError) as refused:
        owners_of(text, tmp_path)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_file_that_is_not_there_or_no_text_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_owners(tmp_path / "no.csv", LABELS, rng())
    with pytest.raises(ConfigError, match="cannot be read: it is no file"):
        read_owners(tmp_path, LABELS, rng())
    (tmp_path / "who.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_owners(tmp_path / "who.csv", LABELS, rng())


sizes_of_clients = st.lists(st.integers(0, 6), min_size=3, max_size=30)


@given(sizes_of_clients, st.integers(0, 20), st.sampled_from([0, 0.2, 0.4]), st.integers(0, 1000))
def test_roles_are_apart_as_many_under_any_seed_and_only_trainers_may_hold_nothing(sizes, unowned, held_out, seed):
    clients = np.concatenate([np.repeat(np.arange(len(sizes)), sizes), np.full(unowned, NOBODY)]).astype(int)
    owners, rule = Owners(clients, tuple(map(str, range(len(sizes))))), NaturalClients(held_out=held_out)
    wanted = len(clients) // 4
    if not sum(sizes):
        return
    try:
        one, other = (draw_roles(rule, owners, wanted, 0, rng(each)) for each in (seed, seed + 1))
    except ConfigError:
        return
    assert [len(part) for part in vars(one).values()] == [len(part) for part in vars(other).values()]
    assert sorted(np.concatenate(list(vars(one).values()))) == list(range(len(sizes)))
    assert len(one.server) == 0 or unowned < wanted
    if len(one.server) + len(one.held_out) <= np.count_nonzero(sizes):
        assert (owners.sizes[np.concatenate([one.server, one.held_out])] > 0).all()


def test_so_many_clients_as_are_asked_for_are_drawn_and_no_more_than_there_are():
    owners, rule = Owners(np.repeat(np.arange(10), 4), tuple("abcdefghij")), NaturalClients(server=0.2, held_out=0.1)
    roles = draw_roles(rule, owners, 0, 5, rng())
    assert [len(part) for part in (roles.server, roles.held_out, roles.training)] == [2, 1, 5]
    assert np.array_equal(roles.training, draw_roles(rule, owners, 0, 5, rng()).training)
    with pytest.raises(ConfigError, match=r"10 clients, 2 of them the server's .* 1 held out .* 7 are left to train, not 8"):
        draw_roles(rule, owners, 0, 8, rng())
    with pytest.raises(ConfigError, match="server=0 leaves the server no examples"):
        draw_roles(NaturalClients(server=0), owners, 0, 5, rng())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("clients:server=1", "server is a share of the clients, at least 0 and below 1, not 1"),
        ("clients:held_out=-0.1", "held_out is a share"),
        ("clients:held_out=nan", "held_out is a share"),
        ("clients:server=0.5,held_out=0.5", "leave no client to train"),
        ("clients:min_partition_size=0", "min_partition_size is at least 1"),
        ("clients:hold_out=0.1", "did you mean 'held_out'"),
        ("clients:a.csv,b.csv", "key=value"),
    ],
)
def test_settings_without_a_meaning_are_refused(text, said):
    with pytest.raises(ConfigError, match=said):
        natural_clients(text)


def test_a_partition_is_kept_with_the_whole_path_of_its_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole = f"clients:file={tmp_path / 'who.csv'},held_out=0.2"
    assert partition_in_full("clients:who.csv,held_out=0.2") == whole == partition_in_full(whole)
    assert partition_in_full("clients") == "clients"
    assert partition_in_full("shards") == "shards"
