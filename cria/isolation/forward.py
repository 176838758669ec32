"""Forward connections from ports of the host to ports inside a clone's network namespace.

Run as a script inside the namespace. It inherits listeners that were made on the host, and connects
inside the namespace. So no address, route or rule is needed that could be left behind; the price is a
copy in user space. Everything ends with the namespace.

    python forward.py FD:ADDRESS:PORT...
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys

CHUNK = 65536


async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    """Copy a stream to its end, and shut the target down for writing: half-open connections stay so."""
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
            await asyncio.gather(copy(reader, inner_writer), copy(inner_reader, writer))
        finally:
            inner_writer.close()
            writer.close()

    server = await asyncio.start_server(connected, sock=listener)
    await server.serve_forever()


async def main(arguments: list[str]) -> None:
    services = []
    for argument in arguments:
        number, _, target = argument.partition(":")
        address, _, port = target.rpartition(":")
        services.append(serve(socket.socket(fileno=int(number)), address, int(port)))
    await asyncio.gather(*services)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
