"""Locks on real connections: what they drop, that they go with their holder, and iptables' own."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from cria.model.socket import Endpoint, PortSocket
from cria.network import connection_locks
from cria.network.planner import plan
from cria.network.requests import PortRequests
from cria.system.netfilter import Connection, Netfilter

pytestmark = [pytest.mark.root]

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture(params=["127.0.0.1", "::1"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    with ExitStack() as stack:
        family = socket.AF_INET6 if ":" in request.param else socket.AF_INET
        server = stack.enter_context(socket.socket(family))
        server.bind((request.param, 0))
        server.listen()
        client = stack.enter_context(socket.create_connection(server.getsockname()[:2]))
        accepted = stack.enter_context(server.accept()[0])
        yield client, accepted


def connection(pair: Pair) -> Connection:
    client, accepted = (
        Endpoint(address=sock.getsockname()[0], port=sock.getsockname()[1]) for sock in pair
    )
    return client, accepted


def arrives(sender: socket.socket, receiver: socket.socket, seconds: float) -> bool:
    receiver.settimeout(seconds)
    sender.send(b"!")
    try:
        return receiver.recv(1) == b"!"
    except TimeoutError:
        return False


@pytest.mark.parametrize("turned", [False, True])
def test_a_locked_connection_stands_still_both_ways_and_goes_on_after(
    pair: Pair, turned: bool
) -> None:
    client, accepted = pair[::-1] if turned else pair
    before = Netfilter().tables()
    with connection_locks.locked((connection(pair),)):
        assert not arrives(client, accepted, 0.2)
    assert Netfilter().tables() == before
    accepted.settimeout(5)
    assert accepted.recv(1) == b"!", "what was dropped is sent again"


def test_other_connections_are_not_touched(pair: Pair) -> None:
    client, accepted = connection(pair)
    other = Endpoint(address=client.address, port=client.port + 1)
    with connection_locks.locked(((other, accepted),)):
        assert arrives(*pair, 2)


def test_a_process_that_is_killed_leaves_no_lock(pair: Pair) -> None:
    client, accepted = connection(pair)
    program = f"""
import sys, time
sys.path[:0] = {sys.path!r}
from cria.model.socket import Endpoint
from cria.network import connection_locks as locks
ends = (Endpoint(address={client.address!r}, port={client.port}),
        Endpoint(address={accepted.address!r}, port={accepted.port}))
with locks.locked((ends,)):
    print("locked", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"locked\n"
        assert not arrives(*pair, 0.2)
        other.send_signal(signal.SIGKILL)
    pair[1].settimeout(5)
    assert pair[1].recv(1) == b"!"


@pytest.mark.skipif(shutil.which("iptables") is None, reason="needs iptables: apt install iptables")
def test_a_rule_of_criu_for_an_old_port_is_found_by_its_words() -> None:
    ends = Endpoint(address="127.0.0.1", port=28401), Endpoint(address="127.0.0.1", port=28402)
    rules = [
        rule
        for move in plan(sockets(*ends), (), PortRequests.parse("offset:10"))
        for rule in connection_locks.iptables_rules(move)
    ]
    assert len(rules) == 4
    for rule in rules:
        added = ["-A" if word == "-D" else word for word in rule]
        subprocess.run(added, check=True)
    assert [connection_locks.delete_rule(rule) for rule in rules] == [True] * 4
    assert [connection_locks.delete_rule(rule) for rule in rules] == [False] * 4


def sockets(one: Endpoint, other: Endpoint) -> list[PortSocket]:
    return [
        PortSocket(
            id=number, ns_id=1, family="ipv4", protocol="tcp", state="ESTABLISHED",
            local=local, peer=peer,
        )
        for number, (local, peer) in enumerate([(one, other), (other, one)])
    ]  # fmt: skip
