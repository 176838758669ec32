"""Start a page server and speak with it: the restore's side."""

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
from cria.memory.lazy import working_set
from cria.memory.lazy.protocol import (
    SOCKET,
    Answered,
    Failed,
    Ready,
    Rebuilt,
    Running,
    Said,
    Serve,
    receive,
    send,
)
from cria.system.procfs import PROC

ANSWERED_SECONDS = 10.0  # what the engine does not ask for waits until it has answered, or so long


class PageServer:
    """The page server of one restore. It goes on by itself when this is closed, as long as it is needed.

    `images` is CRIU's working directory, `checkpoint` the one that is restored.
    """

    def __init__(self, images: Path, checkpoint: Path, *, pids: Iterable[int], criu: Path) -> None:
        self.log = _log_file()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        directory = os.open(images, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        with theirs, socket.socket(socket.AF_UNIX) as listening:
            # By its descriptor: the path of a socket may have 107 characters at most.
            listening.bind(f"/proc/self/fd/{directory}/{SOCKET}")
            listening.listen(1)
            passed = [theirs.fileno(), listening.fileno()]
            command = [sys.executable, "-m", "cria.memory.lazy", *map(str, passed), str(self.log)]
            self._outer = subprocess.Popen(
                command,
                pass_fds=passed,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                cwd="/",
            )
        words = Serve(
            criu=str(criu),
            pids=tuple(pids),
            working_set=str(working_set.place_for(checkpoint)),
            checkpoint=working_set.identity(checkpoint / "manifest.json"),
            answered_seconds=ANSWERED_SECONDS,
        )
        send(self._control, words, (directory,))
        os.close(directory)

    def report_rebuilt(self, pids: Iterable[int]) -> int:
        """Every process is rebuilt, these are their PIDs: returns the bytes that will arrive.

        Raises RestoreFailed when the page server cannot be relied upon.
        """
        self._outer.wait()  # the guardian is its child, and an orphan soon
        self._say(Rebuilt(pids=tuple(pids)))
        said, _ = receive(self._control)
        if isinstance(said, Ready):
            return said.missing
        raise self._failed(said)

    def report_running(self) -> None:
        self._say(Running())

    def report_answered(self) -> None:
        self._say(Answered())

    def failure(self) -> str | None:
        """Why it failed, if it has."""
        with suppress(BlockingIOError):
            self._control.setblocking(False)
            said, _ = receive(self._control)
            if isinstance(said, Failed):
                return said.why
        return None

    def close(self) -> None:
        """It goes on as long as the engine lives and misses memory."""
        self._control.close()
        self._outer.wait()

    def _say(self, word: Said) -> None:
        try:
            send(self._control, word)
        except OSError as error:
            raise self._failed(receive(self._control)[0]) from error

    def _failed(self, said: Said | None) -> RestoreFailed:
        why = said.why if isinstance(said, Failed) else "it ended"
        return RestoreFailed("the page server of the engine failed", details=why, log=str(self.log))


def _log_file() -> Path:
    import time

    directory = Path("/var/log/cria")
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return directory / f"{time.strftime('%Y-%m-%dT%H-%M-%S')}-{os.getpid()}-lazy.log"


PROCESS_NAME = "cria-lazy"


def find_supervisor(pids: Iterable[int], proc: Path = PROC) -> int | None:
    """The PID of the guardian of one of these processes, None when all memory is there."""
    for pid in pids:
        tracer = _word(Path(f"{proc}/{pid}/status"), "TracerPid:")
        if tracer not in ("", "0") and _comm(proc, tracer) == PROCESS_NAME:
            return int(tracer)
    return None


def wait_for_memory(pids: Iterable[int], seconds: float) -> None:
    """Until all memory of these processes is there. Raises EngineBusy when it takes longer."""
    everyone, deadline = tuple(pids), time.monotonic() + seconds
    while (tracer := find_supervisor(everyone)) is not None:
        if time.monotonic() > deadline:
            raise EngineBusy(
                "memory of the engine still arrives",
                details=f"PID {tracer} gives it what its lazy restore left out",
                remedy="try again when it is done",
                docs="docs/how-to/lazy.md",
            )
        time.sleep(0.01)


def _word(status: Path, name: str) -> str:
    try:
        lines = status.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.split()[1] for line in lines if line.startswith(name)), "")


def _comm(proc: Path, pid: str) -> str:
    try:
        return Path(f"{proc}/{pid}/comm").read_text().strip()
    except OSError:
        return ""
