"""Collect the inventory of a process tree: read what the kernel shows, then say what each thing is for."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec

from cria.engine.inventory import discovery
from cria.engine.inventory.process_facts import ProcessFacts, gather_facts, libraries
from cria.engine.inventory.queues import find_queues
from cria.engine.inventory.roles import (
    HTTP_API,
    Context,
    inet_roles,
    process_roles,
    shared_roles,
    unix_role,
)
from cria.engine.inventory.topology import find_groups, read_topology
from cria.errors import NotAnEngine, PrivilegeMissing
from cria.model.inventory import Descriptor, Inventory, Process, SharedFile, Socket, UnixSocket
from cria.system.descriptors import descriptors, with_protocols
from cria.system.memory import mappings, shared_files
from cria.system.procfs import PROC, thread_names, tree
from cria.system.sockets import sockets


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """What the kernel shows of a process tree, before anything says what it is for.

    `threads` and `libraries` are by PID: the names of threads, with repetitions, and keys of
    `cria.engine.inventory.process_facts.LIBRARIES`.
    """

    taken: float
    is_engine: bool
    processes: tuple[Process, ...]
    descriptors: tuple[Descriptor, ...]
    sockets: tuple[Socket, ...]
    unix_sockets: tuple[UnixSocket, ...]
    shared_files: tuple[SharedFile, ...]
    threads: dict[int, tuple[str, ...]]
    libraries: dict[int, frozenset[str]]


def collect_inventory(root_pid: int, *, any_process: bool = False, proc: Path = PROC) -> Inventory:
    """Return the inventory of the engine whose root is `root_pid`; of any process tree with `any_process`.

    Raises NoSuchProcess, NotAnEngine, and PrivilegeMissing when the processes belong to another user.
    """
    processes = tree(root_pid, proc)
    is_engine = discovery.is_engine_root(root_pid, proc)
    if not is_engine and not any_process:
        raise NotAnEngine(
            f"process {root_pid} is not the root of a vLLM engine",
            details=discovery.describe(root_pid, proc),
        )
    try:
        return classify(read_snapshot(processes, is_engine=is_engine, proc=proc))
    except PermissionError as error:
        raise PrivilegeMissing(
            f"process {root_pid} cannot be inspected",
            details=f"it runs as uid {processes[0].uid}: {error}",
        ) from error


def read_snapshot(
    processes: tuple[Process, ...], *, is_engine: bool, proc: Path = PROC
) -> Snapshot:
    """Read everything about `processes` once."""
    taken = time.time()
    held = tuple(d for process in processes for d in descriptors(process.pid, proc))
    mapped = {process.pid: tuple(mappings(process.pid, proc)) for process in processes}
    opened = sockets(processes, held, proc)
    inodes = {s.inode for s in opened.inet} | {s.inode for s in opened.unix}
    return Snapshot(
        taken=taken,
        is_engine=is_engine,
        processes=processes,
        descriptors=with_protocols(held, inodes, proc),
        sockets=opened.inet,
        unix_sockets=opened.unix,
        shared_files=shared_files((m for maps in mapped.values() for m in maps), held, proc),
        threads={process.pid: thread_names(process.pid, proc) for process in processes},
        libraries={pid: libraries(m.path for m in maps) for pid, maps in mapped.items()},
    )


def classify(snapshot: Snapshot) -> Inventory:
    """Say what each process, socket and shared file of a snapshot is for. Reads nothing."""
    roles = process_roles(snapshot.processes)
    processes = tuple(
        msgspec.structs.replace(process, role=roles[process.pid]) for process in snapshot.processes
    )
    facts = _facts(processes, snapshot)
    queues = find_queues(snapshot.sockets, snapshot.unix_sockets, facts)
    context = Context(facts=facts, queues=queues)
    inet = inet_roles(snapshot.sockets, context)
    return Inventory(
        taken=snapshot.taken,
        is_engine=snapshot.is_engine,
        processes=processes,
        sockets=inet,
        unix_sockets=tuple(
            msgspec.structs.replace(socket, role=unix_role(socket, context))
            for socket in snapshot.unix_sockets
        ),
        shared_files=shared_roles(snapshot.shared_files, facts),
        descriptors=snapshot.descriptors,
        topology=read_topology(processes, (s for s in inet if s.role.name == HTTP_API)),
        groups=find_groups(inet, facts),
    )


def _facts(processes: tuple[Process, ...], snapshot: Snapshot) -> dict[int, ProcessFacts]:
    held: dict[int, list[Descriptor]] = {process.pid: [] for process in processes}
    for descriptor in snapshot.descriptors:
        held[descriptor.pid].append(descriptor)
    return {
        process.pid: gather_facts(
            process,
            held[process.pid],
            snapshot.threads.get(process.pid, ()),
            snapshot.libraries.get(process.pid, frozenset()),
        )
        for process in processes
    }
