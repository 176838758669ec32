"""A server that generates and pauses as an engine does: `python generating.py PORT CONTROL`.

GET /generate/N answers after N steps of 20 ms with the number of pauses meanwhile; GET /state with all counts.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from controlled import FakeEngine  # puts cria_agent on the path
from cria_agent import control_socket
from cria_agent.commands import Commands

STEP_SECONDS = 0.02


class Generator(FakeEngine):
    """A fake engine that generates while it is not paused; requests in flight are kept."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = {"pauses": 0, "resumes": 0, "answered": 0, "generating": 0}

    async def pause_generation(self, *, mode: str, clear_cache: bool) -> None:
        resumes = self.counts["resumes"]
        while mode == "wait" and self.counts["generating"]:
            await asyncio.sleep(STEP_SECONDS)
            if self.counts["resumes"] > resumes:
                return
        await super().pause_generation(mode=mode, clear_cache=clear_cache)
        self.counts["pauses"] += 1

    async def resume_generation(self) -> None:
        await super().resume_generation()
        self.counts["resumes"] += 1

    async def generate(self, steps: int) -> dict[str, int]:
        before = self.counts["pauses"]
        self.counts["generating"] += 1
        done = 0
        while done < steps:
            await asyncio.sleep(STEP_SECONDS)
            done += not self.paused
        self.counts["generating"] -= 1
        self.counts["answered"] += 1
        return {"steps": done, "pauses": self.counts["pauses"] - before}

    def state(self) -> dict[str, int]:
        return self.counts | {"paused": self.paused, "quiesced": self.calls}

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one HTTP request, and close the connection."""
        request = (await reader.readline()).decode().split()
        while (await reader.readline()).strip():
            pass
        _, route, *number = request[1].split("/")
        answer = await self.generate(int(number[0])) if route == "generate" else self.state()
        body = json.dumps(answer).encode()
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()
        writer.close()


async def main(generator: Generator) -> None:
    server = await asyncio.start_server(generator.handle, "127.0.0.1", int(sys.argv[1]))
    await control_socket.serve(Commands(generator), sys.argv[2])
    print("ready", flush=True)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(Generator()))
