"""Talk to CRIU through pycriu's RPC messages, stopping at the stages where cria has work to do."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from cria.criu.messages import find_pycriu
from cria.errors import PycriuMissing

# CRIU loads every plugin of a directory, cuda_plugin.so too, which does what cria.cuda does. It wants
# the directory to exist: this one does in every mount namespace, and holds no library.
WITHOUT_PLUGINS = ("/usr/bin/env", "CRIU_LIBS_DIR=/proc/self/ns")


class CriuRefused(Exception):
    """CRIU answered no; what its error lines mean is worked out in cria.criu.log."""

    def __init__(self, request: str, errno: int, message: str) -> None:
        super().__init__(f"{request}: {message or os.strerror(errno)}")
        self.errno = errno


class Runner(Protocol):
    """Namespaces in which CRIU can be run."""

    def numbered(self, descriptors: Sequence[int]) -> Sequence[int]:
        """The numbers under which a program there will find `descriptors`."""

    def run(self, argv: Sequence[str], descriptors: Sequence[int]) -> None:
        """Run a program there that finds `descriptors` so."""


class Client:
    """One CRIU program, reached by `criu swrk`: a process for each request."""

    def __init__(self, criu: Path) -> None:
        self.criu = criu
        self._rpc = _rpc_messages(criu)

    def options(self, **fields: Any) -> Any:
        """A criu_opts message of this CRIU's own schema."""
        return self._rpc.criu_opts(**{"images_dir_fd": -1, **fields})

    def knows(self, option: str) -> bool:
        """Whether this CRIU has an RPC option of that name: features decide, not version numbers."""
        return option in self._rpc.criu_opts.DESCRIPTOR.fields_by_name

    def constant(self, name: str) -> int:
        """The number of an enum value of the RPC, for example "SKIP" or "IMAGE_IO_DIRECT"."""
        return int(getattr(self._rpc, name))

    def check(self) -> None:
        """Ask CRIU whether this kernel has what it needs. Raises CriuRefused."""
        self._ask(self._rpc.CHECK, self.options(), notify=False).finish()

    def dump(
        self, options: Any, inside: Runner | None = None, *, plugins: bool = True
    ) -> Conversation:
        return self._ask(self._rpc.DUMP, options, notify=True, inside=inside, plugins=plugins)

    def restore(
        self, options: Any, inside: Runner | None = None, *, plugins: bool = True
    ) -> Conversation:
        return self._ask(self._rpc.RESTORE, options, notify=True, inside=inside, plugins=plugins)

    def _ask(
        self,
        kind: int,
        options: Any,
        *,
        notify: bool,
        inside: Runner | None = None,
        plugins: bool = True,
    ) -> Conversation:
        request = self._rpc.criu_req(type=kind, opts=options)
        request.opts.notify_scripts = notify
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            worker = None
            if inside is None:
                worker = self._start(theirs, () if plugins else WITHOUT_PLUGINS)
            else:
                # CRIU finds descriptors by the PID of its peer, which it cannot see from inside.
                images = request.opts.images_dir_fd
                request.opts.images_dir_fd = -1
                channel, directory = inside.numbered([theirs.fileno(), images])
                request.opts.images_dir = f"/proc/self/fd/{directory}"
                command = [*(() if plugins else WITHOUT_PLUGINS), str(self.criu), "swrk"]
                inside.run([*command, str(channel)], [theirs.fileno(), images])
        ours.send(request.SerializeToString())
        return Conversation(self._rpc, worker, ours, self._rpc.criu_req_type.Name(kind).lower())

    def _start(self, theirs: socket.socket, before: Sequence[str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*before, str(self.criu), "swrk", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # Ctrl-C must not kill CRIU between freezing a tree and undoing that.
            start_new_session=True,
        )


class Conversation:
    """One request under way. CRIU waits at each stage it notifies until it is told to go on."""

    def __init__(
        self, rpc: Any, worker: subprocess.Popen[bytes] | None, channel: socket.socket, request: str
    ) -> None:
        self._rpc = rpc
        self._worker = worker
        self._channel = channel
        self._request = request
        self._owes_reply = False
        self._answer: Any = None
        self._over = False

    def wait_for(self, stage: str) -> int:
        """Let CRIU go on until it reaches `stage`, and leave it waiting there.

        Returns the PID that CRIU sent along. Raises CriuRefused if CRIU fails before.
        """
        while True:
            message = self._next(go_on=True)
            if message is None:
                raise CriuRefused(self._request, 0, f"CRIU never reached the stage {stage}")
            if message.notify.script == stage:
                return int(message.notify.pid)

    def finish(self) -> Any:
        """Let CRIU go on to its end and return its answer. Raises CriuRefused."""
        while self._next(go_on=True) is not None:
            pass
        return self._answer

    def abort(self) -> None:
        """Make CRIU fail at the stage where it waits, and wait until it has undone what it did."""
        try:
            while self._next(go_on=False) is not None:
                pass
        except CriuRefused:
            pass

    def _next(self, *, go_on: bool) -> Any:
        """Reply to the stage CRIU waits at; return its next notification, None after its last word."""
        if self._over:
            return None
        if self._owes_reply:
            reply = self._rpc.criu_req(type=self._rpc.NOTIFY, notify_success=go_on)
            self._owes_reply = False
            with suppress(BrokenPipeError):  # it has ended, as reading will show
                self._channel.send(reply.SerializeToString())
        message = self._receive()
        if message.type == self._rpc.NOTIFY:
            self._owes_reply = True
            return message
        self._answer = message
        self._hang_up()
        if not message.success:
            raise CriuRefused(self._request, message.cr_errno, message.cr_errmsg)
        return None

    def _receive(self) -> Any:
        try:
            size = len(self._channel.recv(1, socket.MSG_PEEK | socket.MSG_TRUNC))
        except ConnectionResetError:
            size = 0
        if size == 0:
            self._hang_up()
            raise CriuRefused(self._request, 0, "CRIU ended without an answer")
        message = self._rpc.criu_resp()
        message.ParseFromString(self._channel.recv(size))
        return message

    def _hang_up(self) -> None:
        self._over = True
        self._channel.close()
        if self._worker is not None:
            self._worker.wait()


def _rpc_messages(criu: Path) -> Any:
    """pycriu's rpc_pb2 alone: importing the whole package costs twice a small restore."""
    path = find_pycriu(criu) / "rpc_pb2.py"
    spec = importlib.util.spec_from_file_location("pycriu_rpc_pb2", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (OSError, ImportError, TypeError, AttributeError) as error:
        raise PycriuMissing(f"{path} does not load", details=str(error)) from error
    return module
