"""A unix socket by which the engine's owner, and nobody else, gives it commands: JSON in, JSON out.

One command per connection. The engine hangs up first, so a client that has read to the end knows that no
half of the connection is left for CRIU to find.
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
_serving: list[asyncio.AbstractServer] = []  # a server without a reference is collected


class CommandFailed(Exception):
    """A command that did not work; its text is for a person."""


class Handler(Protocol):
    async def run(self, command: str, words: dict[str, Any]) -> dict[str, Any]: ...


async def serve(handler: Handler, path: str | None = None) -> str:
    """Listen for commands at `path`, by default a new one in the temporary directory. Raises OSError."""
    path = path or os.path.join(tempfile.gettempdir(), f"cria-{secrets.token_hex(8)}.sock")  # noqa: PTH118
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        os.fchmod(
            listener.fileno(), 0o600
        )  # bind gives the path this mode: never open, not for a moment
        listener.bind(path)
    except OSError:
        listener.close()
        raise
    atexit.register(_remove, path, os.getpid())

    async def attend(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            answer = await _answer(handler, reader, _peer_uid(writer))
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()
        writer.close()

    _serving.append(await asyncio.start_unix_server(attend, sock=listener))
    return path


async def _answer(handler: Handler, reader: asyncio.StreamReader, uid: int) -> dict[str, Any]:
    try:
        line = await asyncio.wait_for(reader.readline(), REQUEST_SECONDS)
        words = json.loads(line)
        command = words.pop("command")
    except (asyncio.TimeoutError, ValueError, KeyError, AttributeError, TypeError):  # noqa: UP041
        return {"error": "no command in JSON on one line"}
    if uid not in (0, os.geteuid()):
        return {"error": f"refused: uid {uid} is neither root nor the engine's own {os.geteuid()}"}
    try:
        return await handler.run(command, words)
    except CommandFailed as failed:
        return {"error": str(failed)}


def _peer_uid(writer: asyncio.StreamWriter) -> int:
    """Who connected: the kernel says so, not the peer (unix(7), SO_PEERCRED)."""
    peer = writer.get_extra_info("socket")
    credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    uid: int = struct.unpack("3i", credentials)[1]
    return uid


def _remove(path: str, pid: int) -> None:
    if os.getpid() == pid:
        with suppress(OSError):
            os.unlink(path)  # noqa: PTH108
