"""Held ports, asked of the real kernel on loopback: who gets in before CRIU, with it, and after."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest
from builders import connection, listener, pair

from cria.errors import PortPlanRefused, PortTaken, RestoreFailed
from cria.model.socket import PortSocket
from cria.network.listeners import clear_port_reuse, verify_listeners
from cria.network.plan import PortPlan
from cria.network.planner import plan
from cria.network.reservation import reserve

EVERY_WAY = [(reuse_addr, reuse_port) for reuse_addr in (0, 1) for reuse_port in (0, 1)]


def bound(
    address: str,
    port: int,
    reuse_addr: int = 0,
    reuse_port: int = 0,
    kind: int = socket.SOCK_STREAM,
) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse_addr)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, reuse_port)
    try:
        sock.bind((address, port))
    except OSError:
        sock.close()
        raise
    return sock


def like_criu(address: str, port: int) -> socket.socket:
    """What CRIU does for a listener: both options, bind, listen, then the options as they were."""
    sock = bound(address, port, 1, 1)
    sock.listen()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 0)
    return sock


def gets_in(address: str, port: int) -> list[tuple[int, int]]:
    """In which ways of SO_REUSEADDR and SO_REUSEPORT a stranger can listen there."""
    ways = []
    for way in EVERY_WAY:
        try:
            with closing(bound(address, port, *way)) as sock:
                sock.listen()
                ways.append(way)
        except OSError:
            pass
    return ways


@pytest.fixture
def port() -> int:
    with closing(bound("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def of(*sockets: PortSocket) -> PortPlan:
    return plan(sockets, outside="keep", clients="keep")


def at(port: int, address: str = "127.0.0.1") -> PortPlan:
    where = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    return of(listener(where, dual_stack=address == "::"))


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "::"])
def test_nobody_gets_in_until_it_is_opened(port: int, address: str) -> None:
    with reserve(at(port, address)):
        assert gets_in("127.0.0.1", port) == []
        assert gets_in("0.0.0.0", port) == []
        assert gets_in("::", port) == []
    assert gets_in("127.0.0.1", port) == EVERY_WAY


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "::"])
def test_an_open_reservation_lets_criu_in_and_keeps_ordinary_servers_out(
    port: int, address: str
) -> None:
    with reserve(at(port, address)) as held:
        with pytest.raises(OSError, match="in use"):
            like_criu(address, port)
        held.open()
        assert (0, 0) not in gets_in(address, port)
        assert (1, 0) not in gets_in(address, port), "SO_REUSEADDR, as nearly every server sets"
        restored = like_criu(address, port)
        with closing(restored), socket.create_connection(("127.0.0.1", port)):
            restored.accept()[0].close()


def test_the_kernel_never_gives_a_held_port_to_someone_who_asks_for_any() -> None:
    held = any_ports(40)
    with reserve([at(port) for port in held]):
        assert not held & any_ports(300)


def any_ports(count: int) -> set[int]:
    """What the kernel gives to so many who ask at once; they are free again."""
    asking = [bound("127.0.0.1", 0, 1) for _ in range(count)]
    given = {sock.getsockname()[1] for sock in asking}
    for sock in asking:
        sock.close()
    return given


def test_a_second_reservation_fails_and_names_the_process_that_has_the_first(port: int) -> None:
    with reserve(at(port)) as first:
        for _ in ("closed", "opened"):
            with pytest.raises(PortTaken, match=f"port {port} is taken") as caught:
                reserve(at(port))
            assert f"PID {os.getpid()}" in str(caught.value.details)
            first.open()


def test_all_ports_are_held_or_none(port: int) -> None:
    with closing(bound("127.0.0.1", 0, 1)) as stranger:
        stranger.listen()
        both = [at(port), at(stranger.getsockname()[1])]
        with pytest.raises(PortTaken):
            reserve(both)
        assert gets_in("127.0.0.1", port) == EVERY_WAY


def test_every_member_of_a_so_reuseport_group_is_named(port: int) -> None:
    group = [bound("0.0.0.0", port, 1, 1) for _ in range(2)]
    for sock in group:
        sock.listen()
    with pytest.raises(PortTaken) as caught:
        reserve(at(port))
    assert str(caught.value.details).count(f"0.0.0.0:{port} (LISTEN)") == 2
    for sock in group:
        sock.close()


def test_what_an_earlier_server_left_in_time_wait_does_not_hinder() -> None:
    with closing(bound("127.0.0.1", 0, 1)) as server:
        server.listen()
        port = server.getsockname()[1]
        client = socket.create_connection(("127.0.0.1", port))
        server.accept()[0].close()  # the server's end goes first and waits
        client.close()
    with pytest.raises(OSError, match="in use"):
        bound("127.0.0.1", port)
    with reserve(at(port)):
        assert gets_in("127.0.0.1", port) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="TCP_REPAIR needs CAP_NET_ADMIN; run as root")
def test_what_a_client_left_in_time_wait_does_not_hinder_its_like() -> None:
    with closing(bound("127.0.0.1", 0, 1)) as server:
        server.listen()
        client = socket.create_connection(server.getsockname())
        (near, far), accepted = (client.getsockname(), client.getpeername()), server.accept()[0]
        client.close()
        accepted.close()
    with pytest.raises(OSError, match="in use"):
        bound("127.0.0.1", near[1], 1, 1)
    made = of(*pair(f"127.0.0.1:{near[1]}", f"127.0.0.1:{far[1]}"))
    with reserve(made):
        assert gets_in("127.0.0.1", near[1]) == []
    # A listener on that port is bound without repair mode, and CRIU would fail as this does.
    with pytest.raises(PortTaken, match=str(near[1])):
        reserve(at(near[1]))


def test_a_stranger_who_listens_on_the_port_of_a_dialling_end_is_found() -> None:
    with closing(bound("127.0.0.1", 0, 1)) as stranger:
        stranger.listen()
        port = stranger.getsockname()[1]
        with pytest.raises(PortTaken, match=f"port {port} is taken"):
            reserve(of(*pair(f"127.0.0.1:{port}", "127.0.0.1:42112")))


def test_a_live_connection_with_the_same_four_numbers_is_found() -> None:
    with closing(bound("127.0.0.1", 0, 1)) as server:
        server.listen()
        with socket.create_connection(server.getsockname()) as client, server.accept()[0]:
            near, far = client.getsockname(), client.getpeername()
            made = of(connection(f"127.0.0.1:{near[1]}", f"127.0.0.1:{far[1]}"))
            with pytest.raises(PortPlanRefused, match="exists already"):
                reserve(made)


def test_a_pair_and_its_listener_are_held_side_by_side(port: int) -> None:
    sockets = (listener(f"0.0.0.0:{port}"), *pair(f"127.0.0.1:{port}", "127.0.0.1:42111"))
    with reserve(of(*sockets)):
        assert gets_in("127.0.0.1", port) == gets_in("127.0.0.1", 42111) == []


def test_a_udp_port_is_held_and_let_go(port: int) -> None:
    made = of(listener(f"127.0.0.1:{port}", protocol="udp", state="CLOSE"))
    with reserve(made) as held:
        with pytest.raises(OSError, match="in use"):
            bound("127.0.0.1", port, 1, 1, socket.SOCK_DGRAM)
        held.open()
        with closing(bound("127.0.0.1", port, 1, 1, socket.SOCK_DGRAM)) as restored:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.sendto(b"to the restored one", ("127.0.0.1", port))
            restored.settimeout(2)
            assert restored.recv(100) == b"to the restored one"


def test_an_address_that_this_host_lacks_is_refused() -> None:
    with pytest.raises(PortPlanRefused, match=r"no address for 192\.0\.2\.7:9000"):
        reserve(at(9000, "192.0.2.7"))


def test_a_process_that_is_killed_leaves_no_port_held(port: int) -> None:
    program = f"""
import sys, time
sys.path[:0] = {sys.path!r}
from test_reserve import at, reserve
held = reserve(at({port}))
print("held", flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        assert gets_in("127.0.0.1", port) == []
        other.send_signal(signal.SIGKILL)
    assert gets_in("127.0.0.1", port) == EVERY_WAY
    reserve(at(port)).release()


@pytest.mark.many
def test_of_many_that_reserve_one_port_at_once_exactly_one_gets_it(port: int) -> None:
    program = f"""
import sys
sys.path[:0] = {sys.path!r}
from test_reserve import PortTaken, at, reserve
made = at({port})
print("up", flush=True)
sys.stdin.readline()
try:
    held = reserve(made)
    print("won", flush=True)
except PortTaken:
    print("lost", flush=True)
sys.stdin.readline()
"""
    with ExitStack() as ending:
        racers = [ending.enter_context(talking_to(program)) for _ in range(4)]
        assert [hear(racer) for racer in racers] == ["up"] * 4
        for racer in racers:
            say(racer)
        assert sorted(hear(racer) for racer in racers) == ["lost", "lost", "lost", "won"]
        for racer in racers:
            say(racer)
    assert gets_in("127.0.0.1", port) == EVERY_WAY


def talking_to(program: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", program], stdin=pipe, stdout=pipe, text=True)


def hear(racer: subprocess.Popen[str]) -> str:
    assert racer.stdout is not None
    return racer.stdout.readline().strip()


def say(racer: subprocess.Popen[str]) -> None:
    assert racer.stdin is not None
    racer.stdin.write("\n")
    racer.stdin.flush()


# After the restore ------------------------------------------------------------------------------


@pytest.fixture
def restored(port: int) -> Iterator[socket.socket]:
    with reserve(at(port)) as held:
        held.open()
        sock = like_criu("127.0.0.1", port)
    yield sock
    sock.close()


def test_our_listener_alone_is_owned(restored: socket.socket) -> None:
    verify_listeners(at(restored.getsockname()[1]), [os.getpid()])


def test_a_listener_that_is_not_ours_is_a_port_taken(restored: socket.socket) -> None:
    port = restored.getsockname()[1]
    with pytest.raises(PortTaken, match=f"port {port} is taken") as caught:
        verify_listeners(at(port), [])
    assert f"PID {os.getpid()}" in str(caught.value.details)


def test_a_listener_that_does_not_stand_is_a_failed_restore(port: int) -> None:
    with pytest.raises(RestoreFailed, match="1 listener"):
        verify_listeners(at(port), [os.getpid()])


def test_one_of_two_listeners_of_a_group_is_not_enough(restored: socket.socket) -> None:
    where = f"127.0.0.1:{restored.getsockname()[1]}"
    with pytest.raises(RestoreFailed, match="1 listener"):
        verify_listeners(of(listener(where, 1), listener(where, 2)), [os.getpid()])


@pytest.mark.skipif(os.geteuid() != 0, reason="TCP_REPAIR needs CAP_NET_ADMIN; run as root")
@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "::"])
def test_a_sealed_listener_is_as_exclusive_as_before_the_dump(port: int, address: str) -> None:
    made = at(port, address)
    with closing(like_criu(address, port)) as restored:
        assert (0, 1) in gets_in(address, port), "the kernel no longer leaves it open: seal is idle"
        clear_port_reuse(made)
        assert gets_in(address, port) == []
        with socket.create_connection(("127.0.0.1", port)):
            restored.accept()[0].close()


@pytest.mark.skipif(os.geteuid() != 0, reason="TCP_REPAIR needs CAP_NET_ADMIN; run as root")
def test_a_group_that_shares_by_design_goes_on_sharing(port: int) -> None:
    with closing(bound("127.0.0.1", port, 0, 1)) as first:
        first.listen()
        clear_port_reuse(at(port))
        with closing(bound("127.0.0.1", port, 0, 1)) as second:
            second.listen()


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
def test_nobody_gets_in_by_way_of_ipv6_in_two_steps(port: int, address: str) -> None:
    """First v6-only, which meets no IPv4 reservation, then for both families beside the first socket."""
    with reserve(at(port, address)), ExitStack() as stack:
        first = stack.enter_context(closing(socket.socket(socket.AF_INET6)))
        first.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        with pytest.raises(OSError, match="in use"):
            first.bind(("::", port))
        assert gets_in("::", port) == []


def test_a_server_of_ipv6_alone_is_in_nobody_s_way(port: int) -> None:
    with closing(socket.socket(socket.AF_INET6)) as server:
        server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        server.bind(("::", port))
        server.listen()

        with reserve(at(port, "0.0.0.0")) as reservation:
            reservation.open()
            like_criu("0.0.0.0", port).close()


def test_of_two_that_reserve_the_same_ports_at_once_one_gets_all_of_them() -> None:
    """Without a lock each would hold some of them, and both would fail."""
    ports = [int(bound("127.0.0.1", 0).getsockname()[1]) for _ in range(40)]
    script = (
        "import sys; from builders import listener; from cria.network.planner import plan\n"
        "from cria.network.reservation import reserve; from cria.errors import PortTaken\n"
        f"sockets = [listener(f'127.0.0.1:{{p}}') for p in {ports}]\n"
        "made = plan(sockets); sys.stdin.readline()\n"
        "try:\n    held = reserve(made); print('all', flush=True); sys.stdin.readline()\n"
        "except PortTaken:\n    print('none', flush=True)\n"
    )
    path = os.pathsep.join(sys.path)
    for _ in range(5):
        both = [
            subprocess.Popen(
                [sys.executable, "-c", script],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONPATH": path},
            )
            for _ in range(2)
        ]
        for process in both:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        answers = [process.stdout.readline().strip() for process in both if process.stdout]
        for process in both:
            process.communicate("end\n")

        assert sorted(answers) == ["all", "none"]
