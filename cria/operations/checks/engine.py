"""What a living engine holds that a dump cannot take, or a restore cannot give back.

What CRIU does with each of these was tried; docs/reference/blockers.md has the table.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from cria.errors import CheckpointExists, NoSpace, NotWritable, PrivilegeMissing
from cria.model.inventory import Inventory
from cria.operations.checks import descriptors, gpu, processes, sockets
from cria.operations.checks.rows import Row, fail, ok
from cria.system.host import CAP_SYS_RESOURCE, missing_capabilities

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
    elif owner != os.geteuid() and missing_capabilities(CAP_SYS_RESOURCE):
        # Seen: "Can't get rlimit 0: Operation not permitted".
        yield fail(
            "CAP_SYS_RESOURCE is missing",
            f"process {inventory.root.pid} runs as uid {owner}; CRIU cannot read its limits",
            "run cria with that capability, or as the user of the engine",
            PrivilegeMissing,
        )
    else:
        yield ok("privileges", "CRIU has the capabilities it needs")


# Cheap, and each failed row stops a dump: they run before every one.
ENGINE_CHECKS: tuple[Check, ...] = (
    privileges,
    processes.traced,
    processes.dead_leaders,
    processes.namespaces,
    processes.system_v_memory,
    descriptors.unsupported,
    descriptors.devices,
    gpu.engine,
    descriptors.terminals,
    descriptors.foreign_mounts,
    descriptors.large_deleted_files,
    sockets.connections,
    sockets.unix_halves,
    sockets.unix_waiting,
    sockets.other_protocols,
    sockets.unread_netlink,
    sockets.corked,
)
# Slower, passing, or no reason to refuse: only the doctor tells of them.
ENGINE_ADVICE: tuple[Check, ...] = (
    processes.traced_threads,
    sockets.accept_queues,
    sockets.unread_datagrams,
    descriptors.checked_files,
    gpu.sharing,
)


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
    yield from room(inventory, parent)


def room(inventory: Inventory, parent: Path) -> Iterator[Row]:
    """Whether the file system of `parent` has room for what the engine holds."""
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
    held = (p.memory for p in inventory.processes)
    return sum(memory.anonymous + memory.shared + memory.swapped for memory in held)


def _read_only(directory: Path) -> bool:
    return bool(os.statvfs(directory).f_flag & os.ST_RDONLY)
