"""What a dump does with an engine that it cannot quiesce, and how it says so."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import pytest

from cria.engine.control.client import ControlClient
from cria.engine.control.quiesce import QuiesceSession, resume_restored
from cria.errors import QuiesceFailed, Unhealthy
from cria.events import Event, Warned
from cria.model.inventory import Holder, Inventory, Role, UnixSocket
from cria.model.manifest import Inflight, Quiesced


def still_point(
    *sockets: UnixSocket, is_engine: bool = True, inflight: Inflight | None = "keep"
) -> tuple[QuiesceSession, list[Event]]:
    told: list[Event] = []
    inventory = Inventory(taken=0.0, is_engine=is_engine, processes=(), unix_sockets=sockets)
    return QuiesceSession(inventory, inflight, seconds=0.1, listener=told.append), told


def socket_at(path: str) -> UnixSocket:
    holder = Holder(pid=os.getpid(), fd=3)
    role = Role(name="cria control", confidence="certain")
    return UnixSocket(
        kind="stream", state="LISTEN", path=path, inode=1, holders=(holder,), role=role
    )


def test_an_engine_without_cria_agent_is_dumped_with_a_warning_and_a_reason() -> None:
    still, told = still_point()

    still.pause()

    assert still.drop_caches() is None
    assert still.quiesced is None
    assert still.why_not == "cria is not inside this engine"
    assert [type(event) for event in told] == [Warned]
    assert "cria run" in str(told[0])


def test_what_is_no_engine_is_not_warned_of() -> None:
    still, told = still_point(is_engine=False)

    still.pause()

    assert told == []


def test_what_is_not_wanted_is_not_even_looked_for() -> None:
    still, told = still_point(socket_at("/nowhere/cria.sock"), inflight=None)

    still.pause()
    still.resume()

    assert still.why_not == "not wanted: --no-quiesce"
    assert told == []


def test_an_engine_that_does_not_answer_is_said_with_the_way_around() -> None:
    still, _ = still_point(socket_at("/nowhere/cria.sock"))

    with pytest.raises(QuiesceFailed) as caught:
        still.pause()

    assert "/nowhere/cria.sock" in str(caught.value.details)
    assert "--no-quiesce" in str(caught.value.remedy)


def test_an_undo_never_fails_it_warns() -> None:
    still, told = still_point(socket_at("/nowhere/cria.sock"))
    with pytest.raises(QuiesceFailed):
        still.pause()

    still.resume()

    assert [type(event) for event in told] == [Warned]


def test_a_restored_engine_that_does_not_go_on_is_unhealthy() -> None:
    quiesced = Quiesced(
        control="/nowhere/cria.sock", inflight="keep", workers=1, groups=0, dropped_bytes=0
    )

    with pytest.raises(Unhealthy):
        resume_restored(os.getpid(), quiesced, seconds=0.1)


def test_a_path_longer_than_a_socket_address_is_reached(tmp_path: Path) -> None:
    directory = tmp_path.joinpath(*["d" * 40] * 4)
    directory.mkdir(parents=True)
    descriptor = os.open(directory, os.O_PATH)
    listener = socket.create_server(f"/proc/self/fd/{descriptor}/cria.sock", family=socket.AF_UNIX)

    def answer() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(1024)
            connection.sendall(b'{"paused": true}')

    threading.Thread(target=answer, daemon=True).start()
    control = ControlClient(os.getpid(), str(directory / "cria.sock"))

    assert control.call("status", seconds=2) == {"paused": True}
    listener.close()
    os.close(descriptor)
