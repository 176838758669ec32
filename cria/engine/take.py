"""Take the inventory of a process tree: what the kernel shows, with the role of each thing."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec

from cria.engine import discover
from cria.engine.facts import Facts, read_facts
from cria.engine.queues import find_queues
from cria.engine.roles import Seen, inet_roles, process_roles, shared_role, unix_role
from cria.errors import NotAnEngine, PrivilegeMissing
from cria.inventory import Descriptor, Inventory, Process
from cria.process.descriptors import descriptors
from cria.process.memory import Mapping, mappings, shared_files
from cria.process.sockets import sockets
from cria.process.tree import PROC, tree


def take(root_pid: int, *, any_process: bool = False, proc: Path = PROC) -> Inventory:
    """Return the inventory of the engine whose root is `root_pid`.

    With `any_process` any tree will do. Raises NoSuchProcess, NotAnEngine, and PrivilegeMissing when
    the processes belong to somebody else.
    """
    taken = time.time()
    processes = _with_roles(tree(root_pid, proc))
    engine = discover.is_engine(root_pid, proc)
    if not engine and not any_process:
        raise NotAnEngine(
            f"process {root_pid} is not the root of a vLLM engine",
            details=discover.describe(root_pid, proc),
        )
    try:
        return _taken(taken, engine, processes, proc)
    except PermissionError as error:
        owner = processes[0].uid
        raise PrivilegeMissing(
            f"the descriptors of process {root_pid} cannot be read",
            details=f"it runs as uid {owner}: {error}",
        ) from error


def _taken(taken: float, engine: bool, processes: tuple[Process, ...], proc: Path) -> Inventory:
    held = {process.pid: descriptors(process.pid, proc) for process in processes}
    mapped = {process.pid: tuple(mappings(process.pid, proc)) for process in processes}
    every = tuple(each for group in held.values() for each in group)
    found = sockets(processes, every, proc)
    facts = _facts(processes, held, mapped, proc)
    seen = Seen(facts=facts, queues=find_queues(found.inet, found.unix, facts))
    shared = shared_files((each for group in mapped.values() for each in group), every, proc)
    return Inventory(
        taken=taken,
        is_engine=engine,
        processes=processes,
        sockets=inet_roles(found.inet, seen),
        unix_sockets=tuple(
            msgspec.structs.replace(each, role=unix_role(each, seen)) for each in found.unix
        ),
        shared_files=tuple(
            msgspec.structs.replace(each, role=shared_role(each)) for each in shared
        ),
        descriptors=every,
    )


def _with_roles(processes: tuple[Process, ...]) -> tuple[Process, ...]:
    roles = process_roles(processes)
    return tuple(msgspec.structs.replace(each, role=roles[each.pid]) for each in processes)


def _facts(
    processes: tuple[Process, ...],
    held: dict[int, tuple[Descriptor, ...]],
    mapped: dict[int, tuple[Mapping, ...]],
    proc: Path,
) -> dict[int, Facts]:
    return {
        each.pid: read_facts(each, each.role, held[each.pid], mapped[each.pid], proc)
        for each in processes
    }
