"""Carry connections from a port of the host to a port inside a clone's network namespace.

Run as a script inside the namespace. The listeners were made on the host and are inherited; whatever
is opened here leads into the namespace, so no address, route or rule is needed on either side, and
all of it ends with the namespace.

    python forward.py FD:ADDRESS:PORT...
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys

CHUNK = 65536


async def carry(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    """Copy until the end of the stream, and pass that end on; a half-open connection stays one."""
    with contextlib.suppress(ConnectionError):
        while data := await source.read(CHUNK):
            target.write(data)
            await target.drain()
    with contextlib.suppress(OSError):
        target.write_eof()


async def serve(listener: socket.socket, address: str, port: int) -> None:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            inner_reader, inner_writer = await asyncio.open_connection(address, port)
        except OSError:
            writer.close()
            return
        try:
            await asyncio.gather(carry(reader, inner_writer), carry(inner_reader, writer))
        finally:
            inner_writer.close()
            writer.close()

    server = await asyncio.start_server(connected, sock=listener)
    await server.serve_forever()


async def main(words: list[str]) -> None:
    services = []
    for word in words:
        number, _, target = word.partition(":")
        address, _, port = target.rpartition(":")
        services.append(serve(socket.socket(fileno=int(number)), address, int(port)))
    await asyncio.gather(*services)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
