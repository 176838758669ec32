"""The steps of a dump that deal with the running engine: find it, look at it, quiesce it, resume it."""

from __future__ import annotations

import os
from collections.abc import Iterator

from cria.checkpoint import saved_files
from cria.criu import program
from cria.criu.client import Client
from cria.engine import canary, files
from cria.engine.control.lookup import find_client
from cria.engine.control.quiesce import QuiesceSession
from cria.engine.handle import clean_up as clean_up_after
from cria.engine.inventory import discovery
from cria.engine.inventory.collect import collect_inventory
from cria.isolation.namespaces import NamespacesOfProcess, in_other_pid_namespace
from cria.memory.lazy import client as page_server
from cria.operations.checks import preflight
from cria.operations.dump.state import DumpState
from cria.system.locks import lock_engine as lock
from cria.system.processes import wait_for_exit
from cria.system.procfs import tree


def find_engine(state: DumpState) -> None:
    request = state.request
    if request.any_process and request.target is not None:
        state.root = tree(request.target)[0].pid
    else:
        state.root = discovery.find_engine(request.target, port=request.port)


def lock_engine(state: DumpState) -> None:
    state.lock = lock(state.root)


def unlock_engine(state: DumpState) -> None:
    if state.has("lock"):
        os.close(state.lock)
        del state.lock


def is_still_loading(state: DumpState) -> bool:
    return page_server.find_supervisor(_pids(state)) is not None


def wait_for_memory(state: DumpState) -> None:
    """Wait until a lazily restored engine has all its memory, as long as quiescing it may take."""
    page_server.wait_for_memory(_pids(state), state.request.quiesce_seconds)


def find_criu(state: DumpState) -> None:
    criu = program.find()
    query = program.VersionQuery(criu)
    try:
        state.client = Client(criu)
    finally:  # an old CRIU is named as such, before anything that it lacks
        state.criu_version = ".".join(map(str, query.require()))


def take_inventory(state: DumpState) -> None:
    state.inventory = collect_inventory(state.root, any_process=state.request.any_process)
    state.quiesce = QuiesceSession(
        state.inventory,
        state.request.requests_in_flight,
        seconds=state.request.quiesce_seconds,
        listener=state.request.listener,
    )


def check_engine(state: DumpState) -> None:
    if in_other_pid_namespace(state.root):
        NamespacesOfProcess(state.root)  # raises for a container: nothing of it is executed
    preflight.dump(state.inventory, state.staged.output)


def record_canary(state: DumpState) -> None:
    state.canary, state.no_canary = canary.before_dump(state.inventory, wanted=state.request.canary)


def find_files(state: DumpState) -> None:
    """Find the engine's files that CRIU's images do not name, while the engine still runs.

    Its torch stores are searched for in its whole heap, unless it names them when it is quiesced.
    """
    names_its_stores = state.request.requests_in_flight and find_client(state.inventory)
    if not names_its_stores:
        state.stores = files.file_stores(state.inventory)
    state.temporary_files = files.temporary_files(state.inventory)
    state.model_files = files.model_files(state.inventory)


def quiesce_engine(state: DumpState) -> None:
    state.quiesce.pause()


def resume_engine(state: DumpState) -> None:
    if state.lost is None:
        state.quiesce.resume()


def drop_caches(state: DumpState) -> int | None:
    dropped = state.quiesce.drop_caches()
    if state.quiesce.stores is not None:
        state.stores = files.existing(state.inventory, state.quiesce.stores)
    elif state.quiesce.quiesced is not None:  # an older agent does not name them
        state.stores = files.file_stores(state.inventory)
    return dropped


def clean_up(state: DumpState) -> None:
    if not state.request.leave_running:
        wait_for_exit(state.inventory.processes)
        saved_files.remove_originals(state.saved_files, state.uids)
        clean_up_after(state.inventory)
    unlock_engine(state)


def _pids(state: DumpState) -> Iterator[int]:
    return (process.pid for process in tree(state.root))
