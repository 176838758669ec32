"""Take the inventory of a process tree: read what the kernel shows, then say what each thing is for."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec

from cria.engine.inventory import discovery
from cria.engine.inventory.groups import find_groups
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
from cria.engine.inventory.topology import topology
from cria.errors import NotAnEngine, PrivilegeMissing
from cria.model.inventory import Descriptor, Inventory, Process, SharedFile, Socket, UnixSocket
from cria.system.descriptors import descriptors, with_protocols
from cria.system.memory import mappings, shared_files
from cria.system.procfs import PROC, thread_names, tree
from cria.system.sockets import sockets


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """What the kernel shows of a process tree, before anything is said of what it is for.

    `threads` and `libraries` are by PID: names of threads with repetitions, names of
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
    """Return the inventory of the engine whose root is `root_pid`.

    With `any_process` any tree will do. Raises NoSuchProcess, NotAnEngine, and PrivilegeMissing when
    the processes belong to somebody else.
    """
    processes = tree(root_pid, proc)
    engine = discovery.is_engine_root(root_pid, proc)
    if not engine and not any_process:
        raise NotAnEngine(
            f"process {root_pid} is not the root of a vLLM engine",
            details=discovery.describe(root_pid, proc),
        )
    try:
        return classify(read_snapshot(processes, is_engine=engine, proc=proc))
    except PermissionError as error:
        raise PrivilegeMissing(
            f"process {root_pid} cannot be looked into",
            details=f"it runs as uid {processes[0].uid}: {error}",
        ) from error


def read_snapshot(
    processes: tuple[Process, ...], *, is_engine: bool, proc: Path = PROC
) -> Snapshot:
    """Read everything about `processes` once."""
    taken = time.time()
    held = tuple(each for process in processes for each in descriptors(process.pid, proc))
    mapped = {process.pid: tuple(mappings(process.pid, proc)) for process in processes}
    found = sockets(processes, held, proc)
    inodes = {each.inode for each in found.inet} | {each.inode for each in found.unix}
    return Snapshot(
        taken=taken,
        is_engine=is_engine,
        processes=processes,
        descriptors=with_protocols(held, inodes, proc),
        sockets=found.inet,
        unix_sockets=found.unix,
        shared_files=shared_files((m for each in mapped.values() for m in each), held, proc),
        threads={process.pid: thread_names(process.pid, proc) for process in processes},
        libraries={pid: libraries(m.path for m in each) for pid, each in mapped.items()},
    )


def classify(seen: Snapshot) -> Inventory:
    """Say what each process, socket and shared file of a snapshot is for. Reads nothing."""
    roles = process_roles(seen.processes)
    processes = tuple(
        msgspec.structs.replace(each, role=roles[each.pid]) for each in seen.processes
    )
    facts = _facts(processes, seen)
    known = Context(facts=facts, queues=find_queues(seen.sockets, seen.unix_sockets, facts))
    inet = inet_roles(seen.sockets, known)
    return Inventory(
        taken=seen.taken,
        is_engine=seen.is_engine,
        processes=processes,
        sockets=inet,
        unix_sockets=tuple(
            msgspec.structs.replace(each, role=unix_role(each, known)) for each in seen.unix_sockets
        ),
        shared_files=shared_roles(seen.shared_files, facts),
        descriptors=seen.descriptors,
        topology=topology(processes, (s for s in inet if s.role.name == HTTP_API)),
        groups=find_groups(inet, facts),
    )


def _facts(processes: tuple[Process, ...], seen: Snapshot) -> dict[int, ProcessFacts]:
    held: dict[int, list[Descriptor]] = {process.pid: [] for process in processes}
    for each in seen.descriptors:
        held[each.pid].append(each)
    return {
        each.pid: gather_facts(
            each,
            held[each.pid],
            seen.threads.get(each.pid, ()),
            seen.libraries.get(each.pid, frozenset()),
        )
        for each in processes
    }
