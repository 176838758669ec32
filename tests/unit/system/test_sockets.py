"""Sockets are those that `ss` shows: every listener, both ends of a pair, and nothing of others."""

import os
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cria.model.inventory import Holder, Socket, UnixSocket
from cria.system import sock_diag
from cria.system.descriptors import descriptors
from cria.system.procfs import tree
from cria.system.sockets import Sockets, plain, sockets


def seen() -> Sockets:
    own = [process for process in tree(os.getpid()) if process.pid == os.getpid()]
    return sockets(own, descriptors(os.getpid()))


def inet(fd: int) -> Socket:
    return next(s for s in seen().inet if Holder(pid=os.getpid(), fd=fd) in s.holders)


def unix(fd: int) -> UnixSocket:
    return next(s for s in seen().unix if Holder(pid=os.getpid(), fd=fd) in s.holders)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def listener(stack: ExitStack, address: str = "127.0.0.1", backlog: int = 7) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    made = stack.enter_context(socket.socket(family))
    made.bind((address, 0))
    made.listen(backlog)
    return made


def test_a_listener_has_its_address_backlog_and_holder(stack: ExitStack) -> None:
    made = listener(stack)
    found = inet(made.fileno())
    assert (found.state, found.protocol, found.family) == ("LISTEN", "tcp", "ipv4")
    assert (found.local.address, found.local.port) == made.getsockname()
    assert (found.backlog, found.peer, found.uid) == (7, None, os.getuid())
    assert found.holders == (Holder(pid=os.getpid(), fd=made.fileno()),)


def test_connections_that_wait_to_be_accepted_are_counted(stack: ExitStack) -> None:
    made = listener(stack)
    assert inet(made.fileno()).receive_queue == 0
    stack.enter_context(socket.create_connection(made.getsockname()))
    assert inet(made.fileno()).receive_queue == 1


def test_both_ends_of_a_pair_know_each_other_and_their_queues(stack: ExitStack) -> None:
    made = listener(stack)
    client = stack.enter_context(socket.create_connection(made.getsockname()))
    server = stack.enter_context(made.accept()[0])
    client.send(b"hello")
    one, other = inet(client.fileno()), inet(server.fileno())
    assert one.state == other.state == "ESTABLISHED"
    assert (one.local, one.peer) == (other.peer, other.local)
    assert one.peer_holders == other.holders
    assert other.peer_holders == one.holders
    assert other.receive_queue == 5


def test_a_peer_outside_has_no_holders(stack: ExitStack) -> None:
    made = listener(stack)
    port = made.getsockname()[1]
    dial = f"import socket; s = socket.create_connection(('127.0.0.1', {port})); s.recv(1)"
    other = stack.enter_context(subprocess.Popen([sys.executable, "-c", dial]))
    server = stack.enter_context(made.accept()[0])
    found = inet(server.fileno())
    assert found.peer is not None and found.peer_holders == ()
    server.close()
    other.wait(timeout=20)


def test_a_v4_client_of_a_dual_stack_listener_is_matched_with_its_peer(stack: ExitStack) -> None:
    made = stack.enter_context(
        socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    )
    client = stack.enter_context(socket.create_connection(("127.0.0.1", made.getsockname()[1])))
    server = stack.enter_context(made.accept()[0])
    assert inet(made.fileno()).dual_stack
    assert inet(server.fileno()).peer_holders == inet(client.fileno()).holders
    assert plain(inet(server.fileno()).local.address) == "127.0.0.1"


def test_a_v6_only_listener_is_not_dual_stack(stack: ExitStack) -> None:
    made = stack.enter_context(socket.create_server(("::1", 0), family=socket.AF_INET6))
    assert (inet(made.fileno()).family, inet(made.fileno()).dual_stack) == ("ipv6", False)


def test_a_bound_port_that_does_not_listen_is_seen(stack: ExitStack) -> None:
    made = stack.enter_context(socket.socket())
    made.bind(("127.0.0.1", 0))
    if not [s for s in seen().inet if s.local.port == made.getsockname()[1]]:
        pytest.skip("needs Linux 6.8, which lists bound sockets")
    assert inet(made.fileno()).state in ("CLOSE", "BOUND_INACTIVE")


def test_udp_is_seen(stack: ExitStack) -> None:
    made = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    made.bind(("127.0.0.1", 0))
    assert inet(made.fileno()).protocol == "udp"


def test_a_listener_held_twice_is_one_socket_with_two_holders(stack: ExitStack) -> None:
    made = listener(stack)
    again = stack.enter_context(made.dup())
    assert {holder.fd for holder in inet(made.fileno()).holders} == {made.fileno(), again.fileno()}


def test_a_unix_pair_knows_its_peer(stack: ExitStack) -> None:
    one, other = socket.socketpair()
    stack.enter_context(one)
    stack.enter_context(other)
    assert unix(one.fileno()).peer_inode == unix(other.fileno()).inode
    assert unix(one.fileno()).peer_holders == unix(other.fileno()).holders
    assert unix(one.fileno()).path is None


def test_a_unix_listener_has_its_path_and_backlog(stack: ExitStack, tmp_path: Path) -> None:
    made = stack.enter_context(socket.socket(socket.AF_UNIX))
    made.bind(str(tmp_path / "s"))
    made.listen(3)
    found = unix(made.fileno())
    assert (found.state, found.path, found.backlog) == ("LISTEN", str(tmp_path / "s"), 3)


def test_an_abstract_name_begins_with_an_at_sign(stack: ExitStack) -> None:
    name = f"cria-test-{uuid.uuid4()}"
    made = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
    made.bind("\0" + name)
    assert (unix(made.fileno()).path, unix(made.fileno()).kind) == (f"@{name}", "dgram")


def test_the_sockets_of_others_are_left_out(stack: ExitStack) -> None:
    made = listener(stack)
    held = [each for each in descriptors(os.getpid()) if each.fd != made.fileno()]
    found = sockets(tree(os.getpid())[:1], held).inet
    assert made.getsockname()[1] not in {s.local.port for s in found}


def test_the_kernel_s_own_table_has_the_same_listeners() -> None:
    table = Path("/proc/net/tcp").read_text().splitlines()[1:]
    listening = {int(line.split()[9]) for line in table if line.split()[3] == "0A"}
    rows = sock_diag.inet_rows(socket.AF_INET, socket.IPPROTO_TCP)
    assert listening == {row.inode for row in rows if row.state == 10}


def test_pyroute2_reads_the_same(stack: ExitStack) -> None:
    diag = pytest.importorskip("pyroute2.netlink.diag")
    made = listener(stack)
    with diag.DiagSocket() as asked:
        asked.bind()
        theirs = {m["idiag_inode"]: m for m in asked.get_sock_stats(family=socket.AF_INET)}
    mine = {r.inode: r for r in sock_diag.inet_rows(socket.AF_INET, socket.IPPROTO_TCP)}
    inode = os.fstat(made.fileno()).st_ino
    assert mine[inode].source_port == theirs[inode]["idiag_sport"] == made.getsockname()[1]
    assert mine[inode].send_queue == theirs[inode]["idiag_wqueue"] == 7
    assert mine[inode].source == theirs[inode]["idiag_src"]


@given(st.ip_addresses(v=4).map(str))
def test_a_mapped_address_is_the_v4_address_inside_it(address: str) -> None:
    assert plain(f"::ffff:{address}") == plain(address) == address


@given(st.ip_addresses(v=6).map(str).filter(lambda text: "." not in text))
def test_any_other_v6_address_stays_as_it_is(address: str) -> None:
    assert plain(address) == address


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make a network namespace")
def test_sockets_in_another_network_namespace_are_read_from_here() -> None:
    inside = (
        "import socket; s = socket.socket(); s.bind(('0.0.0.0', 4242)); s.listen(9);"
        " print('ready', flush=True); input()"
    )
    words = ["unshare", "--net", sys.executable, "-c", inside]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        before = Path("/proc/thread-self/ns/net").stat().st_ino
        root = tree(process.pid)
        found = sockets(root, descriptors(process.pid)).inet
        process.stdin.close()
    assert [(s.local.port, s.backlog, s.netns) for s in found] == [
        (4242, 9, root[0].namespaces["net"])
    ]
    assert root[0].namespaces["net"] != before
    assert Path("/proc/thread-self/ns/net").stat().st_ino == before


def test_a_namespace_that_cannot_be_entered_is_an_error_of_the_system() -> None:
    with pytest.raises(OSError):
        sock_diag.in_namespace("/proc/self/ns/uts", list)


def test_a_process_that_has_ended_meanwhile_takes_its_namespace_along() -> None:
    gone = msgspec.structs.replace(tree(os.getpid())[0], pid=999999999, namespaces={"net": 1})
    assert sockets([gone], []) == Sockets(inet=(), unix=())
