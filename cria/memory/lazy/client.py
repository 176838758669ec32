"""The restore's side of a lazy restore: start a page server, and tell it how far the restore is."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from cria.errors import EngineBusy, RestoreFailed
from cria.memory.lazy import protocol, working_set
from cria.memory.lazy.protocol import (
    PROCESS_NAME,
    SOCKET,
    Answered,
    Failed,
    Message,
    Ready,
    Rebuilt,
    Running,
    Serve,
)
from cria.model.manifest import MANIFEST
from cria.system import procfs
from cria.system.procfs import PROC

ANSWER_SECONDS = 10.0  # the engine counts as having answered after that
_LOGS = Path("/var/log/cria")


class PageServerClient:
    """The page server of one restore, which goes on by itself when this is closed."""

    def __init__(self, images: Path, checkpoint: Path, *, pids: Iterable[int], criu: Path) -> None:
        """Start a page server for the processes `pids` in the images of `checkpoint`.

        `images` is CRIU's working directory with these images, `criu` is the CRIU program.
        """
        self.log = _create_log_path()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        directory = os.open(images, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        with theirs, socket.socket(socket.AF_UNIX) as listener:
            # By its descriptor: the path of a socket has 107 characters at most (unix(7)).
            listener.bind(f"/proc/self/fd/{directory}/{SOCKET}")
            listener.listen(1)
            descriptors = [theirs.fileno(), listener.fileno()]
            arguments = [*map(str, descriptors), str(self.log)]
            self._launcher = subprocess.Popen(
                [sys.executable, "-m", "cria.memory.lazy", *arguments],
                pass_fds=descriptors,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                cwd="/",
            )
        request = Serve(
            criu=str(criu),
            pids=tuple(pids),
            working_set=str(working_set.path_for(checkpoint)),
            checkpoint=working_set.identity(checkpoint / MANIFEST),
            answer_seconds=ANSWER_SECONDS,
        )
        protocol.send(self._control, request, (directory,))
        os.close(directory)

    def report_rebuilt(self, pids: Iterable[int]) -> int:
        """Report that every process exists, under these PIDs, and none runs.

        Returns the bytes that the page server will load. Raises RestoreFailed where it has failed.
        """
        self._launcher.wait()  # it has forked the supervisor and ended long ago
        self._send(Rebuilt(pids=tuple(pids)))
        message, _ = protocol.receive(self._control)
        if isinstance(message, Ready):
            return message.missing
        raise self._failed(message)

    def report_running(self) -> None:
        """Report that the processes run, and that CRIU does not trace them any more."""
        self._send(Running())

    def report_answered(self) -> None:
        """Report that the engine has answered: everything that it still misses may be loaded."""
        self._send(Answered())

    def failure(self) -> str | None:
        """Return why the page server has failed, or None."""
        with suppress(BlockingIOError):
            self._control.setblocking(False)
            message, _ = protocol.receive(self._control)
            if isinstance(message, Failed):
                return message.why
        return None

    def close(self) -> None:
        """Leave the page server alone; it ends when all memory is loaded, or with its engine."""
        self._control.close()
        self._launcher.wait()

    def _send(self, message: Message) -> None:
        try:
            protocol.send(self._control, message)
        except OSError as error:
            raise self._failed(protocol.receive(self._control)[0]) from error

    def _failed(self, message: Message | None) -> RestoreFailed:
        why = message.why if isinstance(message, Failed) else "it ended"
        return RestoreFailed("the page server of the engine failed", details=why, log=str(self.log))


def find_supervisor(pids: Iterable[int], proc: Path = PROC) -> int | None:
    """Return the PID of the supervisor of one of these processes; None where all memory is loaded."""
    for pid in pids:
        tracer = procfs.tracer(pid, proc)
        stat = procfs.stat(tracer, proc) if tracer else None
        if stat is not None and stat.name == PROCESS_NAME:
            return tracer
    return None


def wait_for_memory(pids: Iterable[int], seconds: float) -> None:
    """Wait until all memory of these processes is loaded. Raises EngineBusy after `seconds`."""
    pids, deadline = tuple(pids), time.monotonic() + seconds
    while (supervisor := find_supervisor(pids)) is not None:
        if time.monotonic() > deadline:
            raise EngineBusy(
                "the memory of the engine is still being loaded",
                details=f"the engine was restored lazily; PID {supervisor} supervises its page server",
                remedy="try again later",
                docs="docs/how-to/lazy.md",
            )
        time.sleep(0.01)


def _create_log_path() -> Path:
    _LOGS.mkdir(mode=0o700, parents=True, exist_ok=True)
    return _LOGS / f"{time.strftime('%Y-%m-%dT%H-%M-%S')}-{os.getpid()}-lazy.log"
