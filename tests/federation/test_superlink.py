"""A SuperLink with SuperNodes on loopback gives the rows of a local run."""

import shutil
import subprocess
import threading
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

import fedact
from fedact.simulate import main
from tests.support.fleets import Fleet, fleet, kill_group
from tests.support.runs import timeless


def repeated_here(folder: Path) -> Path:
    """Return the folder of a local run with the config that a fleet's run wrote."""
    again = folder.with_name(f"{folder.name}-local")
    assert main(["--config", str(folder / "config.toml"), "--runtime", "local", "--out", str(again)]) in (0, 1)
    return again


@pytest.fixture
def open_fleet(tmp_path):
    with fleet(tmp_path, ["--insecure"], ["--insecure"]) as started:
        started.connect(insecure="true")
        yield started


@pytest.mark.slow
def test_nodes_with_budgets_of_their_own_give_the_rows_of_a_local_run(open_fleet: Fleet, tmp_path):
    open_fleet.node("first", "partition-id=0 num-partitions=2 memory-budget='75KB'")
    open_fleet.node("second", "partition-id=1 num-partitions=2")
    said = open_fleet.run(clients=2, out=str(tmp_path / "run"))
    assert "Traceback" not in said
    clients = fedact.load_run(tmp_path / "run").clients
    assert clients["budget_bytes"].tolist() == [75_000, 100_000]
    assert set(clients["status"]) == {"ok"}
    assert "--token" not in (tmp_path / "run" / "records.jsonl").read_text()
    assert timeless(repeated_here(tmp_path / "run")) == timeless(tmp_path / "run")


@pytest.mark.exhaustive
def test_a_node_that_says_nonsense_is_one_line_and_its_partition_a_failed_row(open_fleet: Fleet, tmp_path):
    open_fleet.node("first", "partition-id=0 num-partitions=3")
    open_fleet.node("second", "partition-id=7 num-partitions=3")
    open_fleet.node("third", "partition-id=2 num-partitions=3 memory-budget='64 bytes of RAM'")
    said = open_fleet.run(clients=3, out=str(tmp_path / "run"), **{"node-wait": 45})
    said += open_fleet.run(clients=3, rounds=-1)
    assert "--rounds is -1" in said
    assert "Traceback" not in said
    left_out = [line for line in said.splitlines() if line.startswith("a node is left out")]
    assert len(left_out) == 2
    assert any("partition-id is 7, of num-partitions=3" in line for line in left_out)
    assert any("64 bytes of RAM" in line for line in left_out)
    clients = fedact.load_run(tmp_path / "run").clients
    assert clients["status"].tolist() == ["ok", "failed", "failed"]
    assert clients["reason"].tolist()[1:] == ["no node holds this partition"] * 2


@pytest.mark.exhaustive
def test_nodes_learn_pixels_as_a_local_run_does(open_fleet: Fleet, tmp_path):
    pytest.importorskip("segmentation_models_pytorch")
    for number in range(2):
        open_fleet.node(f"node-{number}", f"partition-id={number} num-partitions=2")
    scenes = {"task": "segmentation", "model": "pspnet_mobilenet_v2", "width": "", "resolution": 40, "max-examples": 40}
    said = open_fleet.run(clients=2, budget="1MB", layers=5, **{"batch-size": 4}, **scenes, out=str(tmp_path / "run"))
    assert "Traceback" not in said
    assert set(fedact.load_run(tmp_path / "run").clients["status"]) == {"ok"}
    assert timeless(repeated_here(tmp_path / "run")) == timeless(tmp_path / "run")


@pytest.mark.exhaustive
def test_tls_and_authenticated_nodes(tmp_path):
    keys = make_keys(tmp_path / "keys", ["known-0", "known-1", "stranger"])
    tls = ["--ssl-ca-certfile", keys / "ca.crt", "--ssl-certfile", keys / "server.crt", "--ssl-keyfile", keys / "server.key"]
    link = [*map(str, tls), "--enable-supernode-auth"]
    with fleet(tmp_path, link, ["--root-certificates", str(keys / "ca.crt")]) as started:
        started.connect(root_certificates=f'"{keys / "ca.crt"}"')
        for name in ("known-0", "known-1"):
            started.flwr("supernode", "register", str(keys / f"{name}.pub"), "fleet")
        node = "partition-id={} num-partitions=2 memory-budget='75KB'"
        for number, name in enumerate(("known-0", "known-1", "stranger")):
            started.node(name, node.format(number % 2), "--auth-supernode-private-key", str(keys / name))
        started.run(clients=2, out=str(tmp_path / "run"))
        assert "Failed to activate SuperNode" in started.log("stranger")
    assert set(fedact.load_run(tmp_path / "run").clients["status"]) == {"ok"}
    assert timeless(repeated_here(tmp_path / "run")) == timeless(tmp_path / "run")


@pytest.mark.exhaustive
@pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed: pip install -e '.[ray]'")
def test_flowers_simulation_engine_gives_the_rows_of_a_local_run(tmp_path):
    with fleet(tmp_path, ["--insecure", "--simulation"], []) as started:
        started.connect(insecure="true")
        size = ["--federation-config", "num-supernodes=4 client-resources-num-cpus=1"]
        started.run(*size, clients=4, rounds=2, budget="75KB:1,none:1", out=str(tmp_path / "run"))
    assert set(fedact.load_run(tmp_path / "run").clients["status"]) == {"ok"}
    assert timeless(repeated_here(tmp_path / "run")) == timeless(tmp_path / "run")


@pytest.mark.exhaustive
def test_a_node_that_disappears_is_a_failed_row_and_one_in_its_place_goes_on(open_fleet: Fleet, tmp_path):
    node = "partition-id={} num-partitions=2"
    open_fleet.node("first", node.format(0))
    second = open_fleet.node("second", node.format(1))

    def pull_the_plug():
        while '"round": 1,' not in text_of(tmp_path / "run" / "records.jsonl"):
            time.sleep(0.1)
        kill_group(second, 9)
        open_fleet.node("third", node.format(1))

    threading.Thread(target=pull_the_plug, daemon=True).start()
    open_fleet.run(clients=2, rounds=4, out=str(tmp_path / "run"), deadline=75)
    clients = fedact.load_run(tmp_path / "run").clients
    lost = clients[clients["client"] == 1]
    assert lost["status"].tolist()[0] == "ok"
    assert "failed" in set(lost["status"])
    assert lost["status"].tolist()[-1] == "ok"
    assert all(lost["reason"][lost["status"] == "failed"])
    assert set(clients[clients["client"] == 0]["status"]) == {"ok"}


def text_of(file: Path) -> str:
    return file.read_text() if file.exists() else ""


def make_keys(folder: Path, nodes: list[str]) -> Path:
    """Make a certificate authority, the SuperLink's certificate and the nodes' keys, with the README's commands."""
    folder.mkdir()
    extensions = "subjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=serverAuth\n"
    (folder / "server.ext").write_text(extensions)
    curve = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
    commands = [
        f"openssl req -x509 {curve} -days 365 -subj /CN=fleet-ca -keyout ca.key -out ca.crt",
        f"openssl req {curve} -subj /CN=superlink -keyout server.key -out server.csr",
        "openssl x509 -req -in server.csr -CA ca.crt -CAkey ca.key -days 365 -extfile server.ext -out server.crt",
        *(f"ssh-keygen -q -t ecdsa -b 384 -C node -f {name} -N" for name in nodes),
    ]
    if not (shutil.which("openssl") and shutil.which("ssh-keygen")):
        pytest.skip("openssl or ssh-keygen is not installed")
    for command in commands:
        empty = [""] if command.endswith("-N") else []
        subprocess.run([*command.split(), *empty], cwd=folder, check=True, capture_output=True, timeout=120)
    return folder
