"""The process that gives an engine its memory: it becomes the guardian, and forks the page server."""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path

from cria.criu.images.directory import CriuImages
from cria.errors import CriaError
from cria.memory.lazy import client, protocol
from cria.memory.lazy import server as serve
from cria.memory.lazy.fault_handler import Event, Stages
from cria.memory.lazy.pages import PagesFile
from cria.memory.lazy.protocol import Failed, Serve, receive, send
from cria.memory.lazy.server import Server, Source
from cria.memory.lazy.supervisor import Supervisor

log = logging.getLogger("cria.lazy")


def main() -> None:
    control, listening = (
        socket.socket(fileno=int(sys.argv[1])),
        socket.socket(fileno=int(sys.argv[2])),
    )
    logging.basicConfig(filename=sys.argv[3], level=logging.INFO, format="%(asctime)s %(message)s")
    sys.excepthook = lambda *error: log.error("the page server fails", exc_info=error)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the engine cannot do without
    Path("/proc/self/comm").write_text(client.PROCESS_NAME)
    told, descriptors = receive(control)
    assert isinstance(told, Serve)
    try:
        sources = open_all(Path(f"/proc/self/fd/{descriptors[0]}"), told)
        channel = accept(listening, control)
        if channel is not None:
            attend(told, sources, channel, control)
    except (CriaError, protocol.HandoffFailed) as error:
        log.error("%s", error)
        with suppress(BrokenPipeError):  # the restore has failed before
            send(control, Failed(why=str(error)))


def open_all(images: Path, told: Serve) -> dict[int, Source]:
    """Everything that will be read is open before CRIU begins."""
    sources = {}
    opened = CriuImages(images, Path(told.criu))
    for pid in told.pids:
        found = opened.memory(pid)
        sources[pid] = Source(memory=found, pages=PagesFile(images / found.pages_file))
    return sources


def accept(listening: socket.socket, control: socket.socket) -> socket.socket | None:
    """CRIU's connection; None when the restore hangs up before."""
    ready, _, _ = select.select([listening, control], [], [])
    return listening.accept()[0] if listening in ready else None


def attend(
    told: Serve, sources: dict[int, Source], channel: socket.socket, control: socket.socket
) -> None:
    """From here on there are two: the page server, and its guardian."""
    handed = protocol.receive_userfaultfds(channel, told.pids)
    seconds = told.answered_seconds
    stages = Stages(rebuilt=Event(), answered=Event(), arrived=Event(), answered_seconds=seconds)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server = Server(told, sources, handed, stages, theirs)
    pid = os.fork()
    if not pid:
        control.close()
        ours.close()
        status = serve.FAILED
        try:
            server.run()
            status = 0
        finally:
            logging.shutdown()
            os._exit(status)
    theirs.close()
    log.info(
        "%s",
        Supervisor(
            control, pid, ours, held=handed.values(), stages=stages, missing=server.bytes
        ).run(),
    )
