"""A dump of an engine that cannot be quiesced says why, and a restored one that does not resume is unhealthy."""

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


def session_of(
    *sockets: UnixSocket, is_engine: bool = True, inflight: Inflight | None = "keep"
) -> tuple[QuiesceSession, list[Event]]:
    events: list[Event] = []
    inventory = Inventory(taken=0.0, is_engine=is_engine, processes=(), unix_sockets=sockets)
    return QuiesceSession(inventory, inflight, seconds=0.1, listener=events.append), events


def socket_at(path: str) -> UnixSocket:
    holder = Holder(pid=os.getpid(), fd=3)
    role = Role(name="cria control", confidence="certain")
    return UnixSocket(
        kind="stream", state="LISTEN", path=path, inode=1, holders=(holder,), role=role
    )


def test_an_engine_without_cria_agent_is_dumped_with_a_warning_and_a_reason() -> None:
    session, events = session_of()

    session.pause()

    assert session.drop_caches() is None
    assert session.quiesced is None
    assert session.why_not == "cria is not inside this engine"
    assert [type(event) for event in events] == [Warned]
    assert "cria run" in str(events[0])


def test_a_program_that_is_no_engine_gives_no_warning() -> None:
    session, events = session_of(is_engine=False)

    session.pause()

    assert events == []


def test_with_no_quiesce_the_control_socket_is_not_used() -> None:
    session, events = session_of(socket_at("/nowhere/cria.sock"), inflight=None)

    session.pause()
    session.resume()

    assert session.why_not == "not wanted: --no-quiesce"
    assert events == []


def test_an_engine_that_does_not_answer_fails_the_pause_with_a_remedy() -> None:
    session, _ = session_of(socket_at("/nowhere/cria.sock"))

    with pytest.raises(QuiesceFailed) as caught:
        session.pause()

    assert "/nowhere/cria.sock" in str(caught.value.details)
    assert "--no-quiesce" in str(caught.value.remedy)


def test_a_resume_that_fails_only_warns() -> None:
    session, events = session_of(socket_at("/nowhere/cria.sock"))
    with pytest.raises(QuiesceFailed):
        session.pause()

    session.resume()

    assert [type(event) for event in events] == [Warned]


def test_a_restored_engine_that_does_not_resume_is_unhealthy() -> None:
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
