"""Checks of a living engine: what it holds that CRIU cannot dump, each with its cure."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from cria.doctor.row import Row, fail, ok, warn
from cria.errors import CheckpointExists, NoSpace, NotWritable, PrivilegeMissing
from cria.inventory import Inventory, Socket

# Source: include/uapi/linux/capability.h.
CAPABILITIES = {"CAP_SYS_PTRACE": 19, "CAP_SYS_ADMIN": 21, "CAP_NET_ADMIN": 12}

Check = Callable[[Inventory], Iterator[Row]]


def privileges(inventory: Inventory) -> Iterator[Row]:
    missing = missing_capabilities()
    owner = inventory.root.uid
    if missing and owner != os.geteuid():
        yield fail(
            "the engine belongs to another user",
            f"process {inventory.root.pid} runs as uid {owner}, cria as uid {os.geteuid()}",
            PrivilegeMissing.default_remedy,
            PrivilegeMissing,
        )
    elif missing:
        yield fail(
            "missing capabilities",
            ", ".join(missing),
            PrivilegeMissing.default_remedy,
            PrivilegeMissing,
        )
    else:
        yield ok("privileges", "CRIU has the capabilities it needs")


def missing_capabilities() -> list[str]:
    """The capabilities CRIU needs for a dump with connections that this process does not have."""
    status = Path("/proc/self/status").read_text()
    effective = int(next(x for x in status.splitlines() if x.startswith("CapEff")).split()[1], 16)
    return [name for name, bit in CAPABILITIES.items() if not effective >> bit & 1]


def io_uring(inventory: Inventory) -> Iterator[Row]:
    roles = {process.pid: process.role.name for process in inventory.processes}
    for descriptor in inventory.descriptors:
        if descriptor.kind == "io_uring":
            yield fail(
                f"process {descriptor.pid} ({roles[descriptor.pid]}) holds an io_uring ring",
                f"fd {descriptor.fd}; CRIU cannot dump io_uring",
                "start the engine with: cria run -- CMD...",
            )


def connections(inventory: Inventory) -> Iterator[Row]:
    """Connections with one end inside: clients of the HTTP API may hang up, others may not."""
    published = {s.local.port for s in inventory.published()}
    for socket in inventory.sockets:
        if socket.protocol != "tcp" or socket.peer is None or socket.peer_holders:
            continue
        if socket.local.port in published:
            yield warn("an HTTP client is connected", f"{socket.peer}; it is cut off by a restore")
        elif inventory.is_engine or socket.state == "ESTABLISHED":
            yield fail(
                "a connection has only one end inside the engine",
                f"{_owner(socket)}: {socket.local} -> {socket.peer} ({socket.state})",
                "end what uses it, or start the engine without it",
            )


def accept_queues(inventory: Inventory) -> Iterator[Row]:
    for socket in inventory.listeners():
        if socket.receive_queue:
            yield warn(
                "connections wait to be accepted",
                f"{socket.receive_queue} at {socket.local}",
                "try again, or drop them: --skip-in-flight",
            )


ENGINE_CHECKS: tuple[Check, ...] = (privileges, io_uring, connections, accept_queues)


def output(inventory: Inventory, place: Path) -> Iterator[Row]:
    """Whether a checkpoint of this engine can be written at `place`."""
    if os.path.lexists(place):
        yield fail(
            f"{place} exists already",
            "a checkpoint is never overwritten",
            f"choose another directory, or remove it: rm -r {place}",
            CheckpointExists,
        )
        return
    parent = next(p for p in place.parents if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK) or _read_only(parent):
        yield fail(
            f"{parent} cannot be written",
            "no permission, or read-only",
            "choose another -o",
            NotWritable,
        )
        return
    needed, free = resident_bytes(inventory), shutil.disk_usage(parent).free
    if free < needed:
        yield fail(
            f"{parent} has too little room",
            f"the engine holds {needed >> 20} MiB, {free >> 20} MiB are free",
            NoSpace.default_remedy,
            NoSpace,
        )


def resident_bytes(inventory: Inventory) -> int:
    """An upper bound of the memory CRIU will write: resident anonymous and shared pages."""
    return sum(_resident(p.pid) for p in inventory.processes)


def _resident(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(
        int(line.split()[1]) * 1024 for line in lines if line.startswith(("RssAnon", "RssShmem"))
    )


def _read_only(directory: Path) -> bool:
    return bool(os.statvfs(directory).f_flag & os.ST_RDONLY)


def _owner(socket: Socket) -> str:
    return ", ".join(f"process {h.pid} fd {h.fd}" for h in socket.holders) or "no process"
