"""Time how long it takes to move many sockets to other ports: python scripts/bench_ports.py [SOCKETS]

The exit status is 1 when planning and rewriting take more than 100 ms for 10,000 sockets.
"""

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
LIMIT_SECONDS_PER_SOCKET = 0.1 / 10_000
CLIENTS = 8  # of each listener
LOOPBACK = 0x0100007F
ESTABLISHED, LISTEN = 1, 10  # TCP states, as in include/net/tcp_states.h of Linux
IPV4_TCP: dict[str, Any] = {"family": 2, "type": 1, "proto": 6, "flags": 2, "backlog": 0}


def main() -> int:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    criu = program.find()
    with TemporaryDirectory() as directory:
        write_image(count, Path(directory), criu)
        runs = [time_parts(Path(directory), criu) for _ in range(ROUNDS)]
    best = min(runs, key=lambda run: sum(run.values()))
    for part, seconds in best.items():
        print(f"{part:8} {seconds * 1000:7.1f} ms")
    total = sum(best.values())
    print(f"{'total':8} {total * 1000:7.1f} ms for {count} sockets, all moved; best of {ROUNDS}")
    return 0 if best["plan"] + best["rewrite"] < LIMIT_SECONDS_PER_SOCKET * count else 1


def time_parts(directory: Path, criu: Path) -> dict[str, float]:
    """Return the seconds of each part; the original holds every port, so that all sockets move."""
    start = time.perf_counter()
    sockets = sockets_of(directory, criu)
    read_end = time.perf_counter()
    occupants = [
        Occupant(protocol="tcp", state=s.state, local=s.local, peer=s.peer, owner="the original")
        for s in sockets
    ]
    plan_start = time.perf_counter()
    port_plan = plan(sockets, occupants, PortRequests(mode="auto"))
    plan_end = time.perf_counter()
    rewrite(directory, port_plan, directory / "view", criu_binary=criu)
    rewrite_end = time.perf_counter()
    assert len(port_plan.changes) == len(sockets)
    return {
        "read": read_end - start,
        "plan": plan_end - plan_start,
        "rewrite": rewrite_end - plan_end,
    }


def write_image(count: int, directory: Path, criu: Path) -> None:
    """Write a files.img of `count` sockets: listeners, their accepted connections, and the other ends."""
    file_entry = load("fdinfo", criu).file_entry
    header = b"".join(word.to_bytes(4, "little") for word in (framing.COMMON, framing.FILES))
    entries = []
    for number in range(1, count + 1):
        group, index = divmod(number - 1, 1 + 2 * CLIENTS)
        port = 2000 + group
        client_port = 10000 + CLIENTS * group + (index - 1) // 2
        if index == 0:
            state, source, destination = LISTEN, port, 0
        elif index % 2:
            state, source, destination = ESTABLISHED, port, client_port
        else:
            state, source, destination = ESTABLISHED, client_port, port
        entry = make_entry(file_entry, number, state, source, destination)
        entries.append(entry.SerializeToString())
    framing.write(directory / "files.img", framing.Image(header=header, entries=tuple(entries)))


def make_entry(file_entry: Any, number: int, state: int, source: int, destination: int) -> Any:
    entry = file_entry(type=4, id=number)
    fields = {
        **IPV4_TCP,
        **{"id": number, "ino": number, "state": state, "ns_id": 1},
        **{"src_port": source, "dst_port": destination},
    }
    for name, value in fields.items():
        setattr(entry.isk, name, value)
    entry.isk.src_addr.append(LOOPBACK)
    entry.isk.dst_addr.append(LOOPBACK if destination else 0)
    set_required_fields(entry)
    return entry


def set_required_fields(entry: Any) -> None:
    """Give every required field that is not set its default: versions of CRIU differ in what is required."""
    while missing := entry.FindInitializationErrors():
        *path, last = missing[0].split(".")
        owner = entry
        for name in path:
            owner = getattr(owner, name)
        if owner.DESCRIPTOR.fields_by_name[last].message_type:
            getattr(owner, last).SetInParent()
        else:
            setattr(owner, last, getattr(owner, last))


if __name__ == "__main__":
    sys.exit(main())
