"""Each socket of real engines gets its role; where a sign is missing a rule says less, never something else."""

from collections import Counter
from collections.abc import Callable, Iterator

import msgspec
import pytest

from cria.engine.command_line import option_value
from cria.engine.inventory.collect import Snapshot, classify
from cria.model.inventory import Descriptor, Holder, Inventory, Socket
from cria.model.socket import Endpoint

Recorded = Callable[[str], Snapshot]


def names(inventory: Inventory) -> Counter[str]:
    return Counter(socket.role.name for socket in inventory.sockets)


def queues(inventory: Inventory) -> Counter[str]:
    listening = (u for u in inventory.unix_sockets if u.state == "LISTEN")
    return Counter(socket.role.name for socket in listening)


def changed(snapshot: Snapshot, **fields: object) -> Inventory:
    return classify(msgspec.structs.replace(snapshot, **fields))


@pytest.mark.parametrize(
    ("name", "roles"),
    [
        ("tp1", {"HTTP API": 1, "Gloo listener": 13}),
        ("tp2", {"HTTP API": 1, "Gloo listener": 26, "Gloo pair": 10}),
        ("dp2", {"HTTP API": 1, "Gloo listener": 26}),
        ("api2", {"HTTP API": 1, "Gloo listener": 13}),
    ],
)
def test_every_inet_socket_of_a_real_engine_has_its_role(
    snapshot: Recorded, name: str, roles: dict[str, int]
) -> None:
    inventory = classify(snapshot(name))
    assert names(inventory) == roles
    assert {s.role.confidence for s in inventory.sockets} == {"certain"}
    assert all(s.role.evidence for s in inventory.sockets)


@pytest.mark.parametrize("name", ["tp1", "tp2", "dp2", "api2"])
def test_no_unix_socket_of_a_real_engine_is_left_unknown(snapshot: Recorded, name: str) -> None:
    inventory = classify(snapshot(name))
    assert not [u for u in inventory.unix_sockets if u.role.name in ("unknown", "ZMQ")]


def test_each_queue_has_one_listener_for_each_process_that_binds_it(snapshot: Recorded) -> None:
    assert queues(classify(snapshot("dp2"))) == {
        "ZMQ engine input": 2,
        "ZMQ engine output": 2,
        "ZMQ coordinator stats": 1,
        "ZMQ coordinator input": 1,
        "ZMQ coordinator publish": 1,
        "ZMQ worker broadcast, data": 2,
        "ZMQ worker broadcast, notify": 2,
        "ZMQ worker response, data": 2,
        "ZMQ worker response, notify": 2,
    }
    assert queues(classify(snapshot("tp2")))["ZMQ group broadcast, data"] == 1


def test_both_ends_of_a_queue_have_the_same_role(snapshot: Recorded) -> None:
    inventory = classify(snapshot("tp2"))
    by_inode = {socket.inode: socket for socket in inventory.unix_sockets}
    for socket in inventory.unix_sockets:
        if socket.peer_inode in by_inode:
            assert by_inode[socket.peer_inode].role == socket.role


@pytest.mark.parametrize(
    ("name", "roles"),
    [
        ("tp1", ["API server", "resource tracker", "EngineCore", "Worker"]),
        ("tp2", ["API server", "resource tracker", "EngineCore", "Worker_TP0", "Worker_TP1"]),
        (
            "dp2",
            [
                "launcher",
                "resource tracker",
                "DPCoordinator",
                "EngineCore_DP0",
                "EngineCore_DP1",
                "API server 0",
                "API server 1",
                "Worker",
                "Worker",
            ],
        ),
    ],
)
def test_processes_have_their_roles_from_title_or_command(
    snapshot: Recorded, name: str, roles: list[str]
) -> None:
    assert [process.role.name for process in classify(snapshot(name)).processes] == roles


def test_a_worker_without_a_rank_in_its_title_names_its_engine_core(snapshot: Recorded) -> None:
    workers = [p for p in classify(snapshot("dp2")).processes if p.role.name == "Worker"]
    assert {p.role.evidence[1] for p in workers} == {"below EngineCore_DP0", "below EngineCore_DP1"}


def moved(sockets: tuple[Socket, ...], old: int, new: int) -> Iterator[Socket]:
    for socket in sockets:
        local = Endpoint(address=socket.local.address, port=new)
        yield msgspec.structs.replace(socket, local=local) if socket.local.port == old else socket


def test_the_http_api_of_a_clone_on_another_port_is_recognized(snapshot: Recorded) -> None:
    recording = snapshot("tp1")
    inventory = changed(recording, sockets=tuple(moved(recording.sockets, 8000, 8777)))
    assert [s.local.port for s in inventory.api_listeners()] == [8777]
    assert inventory.api_listeners()[0].role.confidence == "certain"
    assert inventory.topology.url == "http://127.0.0.1:8777"


def test_the_http_api_on_another_port_without_its_backlog_is_only_likely(
    snapshot: Recorded,
) -> None:
    recording = snapshot("tp1")
    sockets = tuple(
        msgspec.structs.replace(s, backlog=128) if s.local.port == 8777 else s
        for s in moved(recording.sockets, 8000, 8777)
    )
    (http,) = changed(recording, sockets=sockets).api_listeners()
    assert http.role.confidence == "likely"


def test_without_the_names_of_threads_no_listener_is_called_gloo(snapshot: Recorded) -> None:
    assert names(changed(snapshot("tp2"), threads={}))["Gloo listener"] == 0


def test_a_listener_of_the_worker_that_no_gloo_loop_watches_is_unknown(snapshot: Recorded) -> None:
    recording = snapshot("tp2")
    worker = next(p for p in recording.processes if p.command == ("VLLM::Worker_TP0",))
    other = msgspec.structs.replace(
        recording.sockets[0],
        inode=1,
        local=Endpoint(address="127.0.0.1", port=1),
        holders=(Holder(pid=worker.pid, fd=999),),
    )
    inventory = changed(recording, sockets=(*recording.sockets, other))
    assert names(inventory)["unknown"] == 1
    assert names(inventory)["Gloo listener"] == 26


def test_a_second_listener_of_the_api_server_is_not_taken_for_the_http_api(
    snapshot: Recorded,
) -> None:
    recording = snapshot("tp1")
    other = msgspec.structs.replace(
        recording.sockets[0],
        inode=1,
        local=Endpoint(address="127.0.0.1", port=9090),
        backlog=5,
        holders=(Holder(pid=recording.processes[0].pid, fd=999),),
    )
    assert [
        s.local.port
        for s in changed(recording, sockets=(*recording.sockets, other)).api_listeners()
    ] == [8000]


def test_a_client_of_the_http_api_is_an_http_connection(snapshot: Recorded) -> None:
    recording = snapshot("tp1")
    client = msgspec.structs.replace(
        recording.sockets[0],
        state="ESTABLISHED",
        inode=1,
        local=Endpoint(address="10.0.0.1", port=8000),
        peer=Endpoint(address="10.0.0.9", port=50000),
        backlog=None,
    )
    inventory = changed(recording, sockets=(*recording.sockets, client))
    assert names(inventory)["HTTP connection"] == 1


def test_a_connection_to_another_host_is_unknown(snapshot: Recorded) -> None:
    recording = snapshot("tp1")
    telemetry = msgspec.structs.replace(
        recording.sockets[0],
        state="ESTABLISHED",
        inode=1,
        local=Endpoint(address="10.0.0.1", port=50000),
        peer=Endpoint(address="192.0.2.1", port=8000),
        backlog=None,
    )
    assert names(changed(recording, sockets=(*recording.sockets, telemetry)))["unknown"] == 1


def with_store(recording: Snapshot, thread: str) -> Inventory:
    root = recording.processes[0].pid
    listener = msgspec.structs.replace(
        recording.sockets[0],
        inode=1,
        family="ipv6",
        local=Endpoint(address="::", port=29500),
        backlog=4096,
        holders=(Holder(pid=root, fd=900),),
    )
    client = msgspec.structs.replace(
        listener,
        inode=2,
        state="ESTABLISHED",
        local=Endpoint(address="::ffff:127.0.0.1", port=40000),
        peer=Endpoint(address="::ffff:127.0.0.1", port=29500),
        holders=(Holder(pid=root, fd=901),),
        peer_holders=(Holder(pid=root, fd=904),),
    )
    epoll = Descriptor(pid=root, fd=902, kind="eventpoll", target="", watches=(900, 903))
    wake = Descriptor(pid=root, fd=903, kind="eventfd", target="")
    return changed(
        recording,
        sockets=(*recording.sockets, listener, client),
        descriptors=(*recording.descriptors, epoll, wake),
        threads={**recording.threads, root: (*recording.threads[root], thread)},
    )


def test_a_store_is_recognized_by_its_thread_and_its_clients_with_it(snapshot: Recorded) -> None:
    recording = snapshot("dp2")
    assert names(with_store(recording, "pt_tcpstore_uv"))["TCPStore"] == 2
    assert names(with_store(recording, "python"))["TCPStore"] == 0


def test_during_the_start_an_incomplete_pair_of_queues_is_called_zmq_only(
    snapshot: Recorded,
) -> None:
    recording = snapshot("tp1")
    root = recording.processes[0].pid
    listening = [
        u for u in recording.unix_sockets if u.state == "LISTEN" and u.holders[0].pid == root
    ]
    keep = tuple(u for u in recording.unix_sockets if u.inode != listening[1].inode)
    roles = queues(changed(recording, unix_sockets=keep))
    assert roles["ZMQ"] == 1
    assert roles["ZMQ engine input"] == 0


def test_shared_memory_is_named_by_its_name_and_the_processes_that_map_it(
    snapshot: Recorded,
) -> None:
    roles = Counter(file.role.name for file in classify(snapshot("tp2")).shared_files)
    assert roles == {
        "MessageQueue ring, worker broadcast": 1,
        "MessageQueue ring, worker response": 2,
        "MessageQueue ring, group broadcast": 1,
        "CPU tensor-parallel buffer": 2,
        "semaphore": 3,
    }


def test_rings_that_the_same_processes_map_have_the_same_role(snapshot: Recorded) -> None:
    rings = [f for f in classify(snapshot("tp1")).shared_files if "psm_" in f.name]
    assert [file.role.name for file in rings] == ["MessageQueue ring"] * 2


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("serve m --port 1", "1"),
        ("serve m --port=2", "2"),
        ("serve --port 1 --port 3", "3"),
        ("serve m --ports 4", None),
        ("serve m --port", None),
    ],
)
def test_an_option_is_read_in_both_its_forms(line: str, value: str | None) -> None:
    assert option_value(tuple(line.split()), "--port") == value
