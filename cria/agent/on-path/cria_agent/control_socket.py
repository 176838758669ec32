"""The control socket of an engine: its owner and root, and nobody else, send it commands. JSON in, JSON out.

Each connection carries one command. The engine hangs up first, so a client that has read to the end knows that
no half of the connection is left for CRIU to find.

The socket is one path with mode 0600 from its first moment, not in a private directory: it lies beside vLLM's own
sockets, so it comes back at a restore wherever they do.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import os
import secrets
import socket
import struct
import tempfile
from contextlib import suppress
from typing import Any, Protocol

REQUEST_SECONDS = 5.0
_servers: list[asyncio.AbstractServer] = []  # a server without a reference is collected


class CommandFailed(Exception):
    """A command did not work; the text is for a person."""


class Handler(Protocol):
    """Carries out the commands."""

    async def run(self, command: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return the answer, or raise CommandFailed."""
        ...


async def serve(handler: Handler, path: str | None = None) -> str:
    """Listen for commands at `path`, by default a new one in the temporary directory, and return it. Raises OSError."""
    # `cria-*.sock` is how clients of every version find the socket.
    path = path or os.path.join(tempfile.gettempdir(), f"cria-{secrets.token_hex(8)}.sock")  # noqa: PTH118
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        # bind(2) gives the path the mode of the socket: nobody else can open it, not for a moment.
        os.fchmod(listener.fileno(), 0o600)
        listener.bind(path)
    except OSError:
        listener.close()
        raise
    atexit.register(_remove, path, os.getpid())

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            answer = await _answer(handler, reader, _peer_uid(writer))
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()
        writer.close()

    _servers.append(await asyncio.start_unix_server(handle, sock=listener))
    return path


async def _answer(handler: Handler, reader: asyncio.StreamReader, uid: int) -> dict[str, Any]:
    try:
        line = await asyncio.wait_for(reader.readline(), REQUEST_SECONDS)
        arguments = json.loads(line)
        command = arguments.pop("command")
    except (asyncio.TimeoutError, ValueError, KeyError, AttributeError, TypeError):  # noqa: UP041
        return {"error": "no command in JSON on one line"}
    if uid not in (0, os.geteuid()):
        return {"error": f"refused: uid {uid} is neither root nor the engine's own {os.geteuid()}"}
    try:
        return await handler.run(command, arguments)
    except CommandFailed as failed:
        return {"error": str(failed)}


def _peer_uid(writer: asyncio.StreamWriter) -> int:
    """Return the user who connected: the kernel says so, not the peer (unix(7), SO_PEERCRED)."""
    peer = writer.get_extra_info("socket")
    credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    uid: int = struct.unpack("3i", credentials)[1]
    return uid


def _remove(path: str, pid: int) -> None:
    if os.getpid() == pid:  # not in a process that was forked from it
        with suppress(OSError):
            os.unlink(path)  # noqa: PTH108
