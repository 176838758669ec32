"""Time the planning and rewriting of many sockets: python scripts/bench_ports.py [SOCKETS]"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cria.criu import program
from cria.criu.images import framing
from cria.criu.messages import load
from cria.model.socket import Occupant
from cria.network.planner import plan
from cria.network.requests import PortRequests
from cria.ports import rewrite, sockets_of

ROUNDS = 7
LOOPBACK = 0x0100007F
MESSAGES: dict[str, Any] = {"family": 2, "type": 1, "proto": 6, "flags": 2, "backlog": 0}


def image(count: int, directory: Path, criu: Path) -> None:
    """Write a files.img of `count` sockets: a listener, what it accepted and their peers, eight each."""
    file_entry = load("fdinfo", criu).file_entry
    header = b"".join(word.to_bytes(4, "little") for word in (framing.COMMON, framing.FILES))
    entries = []
    for number in range(1, count + 1):
        block, place = divmod(number - 1, 17)
        port, far = 2000 + block, 10000 + 8 * block + (place - 1) // 2
        state, ends = 1, (port, far) if place % 2 else (far, port)
        if place == 0:
            state, ends = 10, (port, 0)
        entries.append(_entry(file_entry, number, state, ends).SerializeToString())
    framing.write(directory / "files.img", framing.Image(header=header, entries=tuple(entries)))


def _entry(file_entry: Any, number: int, state: int, ends: tuple[int, int]) -> Any:
    entry = file_entry(type=4, id=number)
    fields = MESSAGES | {"id": number, "ino": number, "state": state, "ns_id": 1}
    for name, value in (fields | {"src_port": ends[0], "dst_port": ends[1]}).items():
        setattr(entry.isk, name, value)
    entry.isk.src_addr.append(LOOPBACK)
    entry.isk.dst_addr.append(LOOPBACK if ends[1] else 0)
    while missing := entry.FindInitializationErrors():
        *way, last = missing[0].split(".")
        owner = entry
        for name in way:
            owner = getattr(owner, name)
        if owner.DESCRIPTOR.fields_by_name[last].message_type:
            getattr(owner, last).SetInParent()
        else:
            setattr(owner, last, getattr(owner, last))
    return entry


def once(directory: Path, criu: Path) -> dict[str, float]:
    """Seconds for each part, with every port taken by the original so that all must move."""
    begin = time.perf_counter()
    sockets = sockets_of(directory, criu)
    read = time.perf_counter()
    alive = [
        Occupant(protocol="tcp", state=s.state, local=s.local, peer=s.peer, owner="the original")
        for s in sockets
    ]
    ready = time.perf_counter()
    made = plan(sockets, alive, PortRequests(mode="auto"))
    planned = time.perf_counter()
    rewrite(directory, made, directory / "view", criu_binary=criu)
    end = time.perf_counter()
    assert len(made.changes) == len(sockets)
    return {"read": read - begin, "plan": planned - ready, "rewrite": end - planned}


def main() -> int:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    criu = program.find()
    with TemporaryDirectory() as name:
        image(count, Path(name), criu)
        runs = [once(Path(name), criu) for _ in range(ROUNDS)]
    best = min(runs, key=lambda run: sum(run.values()))
    for part, seconds in best.items():
        print(f"{part:8} {seconds * 1000:7.1f} ms")
    total = sum(best.values())
    print(
        f"{'total':8} {total * 1000:7.1f} ms for {count} sockets, all of them moved; best of {ROUNDS}"
    )
    return 0 if best["plan"] + best["rewrite"] < 0.1 * count / 10_000 else 1


if __name__ == "__main__":
    sys.exit(main())
