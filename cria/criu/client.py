"""Talk to CRIU in the messages of its RPC, stopping at the stages at which cria has work to do."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol, cast

from cria.criu.messages import load_rpc
from cria.criu.rpc import CriuOptions, CriuResponse, Rpc

# For engines with GPUs CRIU runs without plugins: cuda_plugin.so would restore the GPU memory of every
# process by itself, with no time limit and on the GPUs of the dump. CRIU loads every *.so of this directory,
# and fails where there is none (cr_plugin_init in criu/plugin.c). This one is in every mount namespace.
WITHOUT_PLUGINS = ("CRIU_LIBS_DIR=/proc/self/ns",)
# CRIU lets its configuration files override a request: with "leave-running" in one of them an engine would run
# on although its checkpoint is published. So CRIU opens none (init_configuration in criu/config.c).
_ENVIRONMENT = ("/usr/bin/env", "--unset=CRIU_CONFIG_FILE")
_WITHOUT_CONFIGURATION = "--no-default-config"


class CriuRefused(Exception):
    """CRIU failed a request; cria.criu.log finds the reason in CRIU's log."""

    def __init__(self, request: str, errno: int, message: str) -> None:
        super().__init__(f"{request}: {message or os.strerror(errno)}")
        self.errno = errno


class Runner(Protocol):
    """Namespaces in which CRIU can be run."""

    def descriptor_numbers(self, descriptors: Sequence[int]) -> Sequence[int]:
        """Return the numbers that `descriptors` have for a program that is run there."""

    def run(self, argv: Sequence[str], descriptors: Sequence[int]) -> None:
        """Run a program there that inherits `descriptors`."""


class Client:
    """One CRIU program, reached by `criu swrk`: a process for each request.

    Only the messages are pycriu's. Its driver (lib/pycriu/criu.py) sends a request and reads one answer, so
    that it cannot reply to notifications, and cria undoes a dump or a restore by a reply of "no".
    """

    def __init__(self, program: Path) -> None:
        """Raises PycriuMissing where there are no messages that belong to the CRIU `program`."""
        self.program = program
        self._rpc = cast("Rpc", load_rpc(program))

    def options(self, **fields: object) -> CriuOptions:
        """Return the options of a request, in the schema of this CRIU."""
        # The field is required, and -1 is "none" (resolve_images_dir_path in criu/cr-service.c).
        return self._rpc.criu_opts(**{"images_dir_fd": -1, **fields})

    def has_option(self, name: str) -> bool:
        """Say whether this CRIU has an option: cria asks for features, not for version numbers."""
        return name in self._rpc.criu_opts.DESCRIPTOR.fields_by_name

    def constant(self, name: str) -> int:
        """Return the number of an enum value of the RPC, for example "SKIP" or "IMAGE_IO_DIRECT"."""
        return int(getattr(self._rpc, name))

    def dump(
        self, options: CriuOptions, inside: Runner | None = None, *, plugins: bool = True
    ) -> Conversation:
        """Begin a dump, in the namespaces `inside` where they are not cria's own."""
        return self._request(self._rpc.DUMP, options, inside=inside, plugins=plugins)

    def restore(
        self, options: CriuOptions, inside: Runner | None = None, *, plugins: bool = True
    ) -> Conversation:
        """Begin a restore, in the namespaces `inside` where they are not cria's own."""
        return self._request(self._rpc.RESTORE, options, inside=inside, plugins=plugins)

    def _request(
        self,
        kind: int,
        options: CriuOptions,
        *,
        inside: Runner | None = None,
        plugins: bool = True,
    ) -> Conversation:
        request = self._rpc.criu_req(type=kind, opts=options)
        request.opts.notify_scripts = True
        variables = () if plugins else WITHOUT_PLUGINS
        command = [*_ENVIRONMENT, *variables, str(self.program), "swrk"]
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            worker = None
            if inside is None:
                worker = _start([*command, str(theirs.fileno()), _WITHOUT_CONFIGURATION], theirs)
            else:
                # CRIU opens the images as /proc/PID/fd/N of its peer, whose PID it cannot see from
                # inside. So it inherits the directory.
                images = request.opts.images_dir_fd
                request.opts.images_dir_fd = -1
                descriptors = [theirs.fileno(), images]
                channel, directory = inside.descriptor_numbers(descriptors)
                request.opts.images_dir = f"/proc/self/fd/{directory}"
                inside.run([*command, str(channel), _WITHOUT_CONFIGURATION], descriptors)
        ours.send(request.SerializeToString())
        return Conversation(self._rpc, worker, ours, self._rpc.criu_req_type.Name(kind).lower())


class Conversation:
    """One request under way. CRIU waits at each stage that it notifies, until it gets a reply."""

    def __init__(
        self, rpc: Rpc, worker: subprocess.Popen[bytes] | None, channel: socket.socket, request: str
    ) -> None:
        self._rpc = rpc
        self._worker = worker
        self._channel = channel
        self._request = request
        self._reply_is_due = False
        self._ended = False

    def wait_for(self, stage: str) -> int:
        """Let CRIU go on until it reaches `stage`, and leave it waiting there.

        Return the PID that CRIU sends along: of the root process, as CRIU sees it. Raises CriuRefused
        where CRIU fails before.
        """
        while True:
            message = self._next(success=True)
            if message is None:
                raise CriuRefused(self._request, 0, f"CRIU never reached the stage {stage}")
            if message.notify.script == stage:
                return message.notify.pid

    def finish(self) -> None:
        """Let CRIU go on to its end. Raises CriuRefused."""
        while self._next(success=True) is not None:
            pass

    def abort(self) -> None:
        """Make CRIU fail at the stage where it waits, and wait until it has undone what it did."""
        with suppress(CriuRefused):
            while self._next(success=False) is not None:
                pass

    def _next(self, *, success: bool) -> CriuResponse | None:
        """Reply to the stage at which CRIU waits; return the next notification, None at CRIU's end."""
        if self._ended:
            return None
        if self._reply_is_due:
            reply = self._rpc.criu_req(type=self._rpc.NOTIFY, notify_success=success)
            self._reply_is_due = False
            with suppress(BrokenPipeError):  # CRIU has ended, as _receive is about to find
                self._channel.send(reply.SerializeToString())
        message = self._receive()
        if message.type == self._rpc.NOTIFY:
            self._reply_is_due = True
            return message
        self._end()
        if not message.success:
            raise CriuRefused(self._request, message.cr_errno, message.cr_errmsg)
        return None

    def _receive(self) -> CriuResponse:
        try:
            size = len(self._channel.recv(1, socket.MSG_PEEK | socket.MSG_TRUNC))
        except ConnectionResetError:
            size = 0
        if size == 0:
            self._end()
            raise CriuRefused(self._request, 0, "CRIU ended without an answer")
        return self._rpc.criu_resp.FromString(self._channel.recv(size))

    def _end(self) -> None:
        self._ended = True
        self._channel.close()
        if self._worker is not None:
            self._worker.wait()


def _start(command: Sequence[str], channel: socket.socket) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        pass_fds=[channel.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # Ctrl-C must not kill CRIU between the moment when it froze processes and when it let them go.
        start_new_session=True,
    )
