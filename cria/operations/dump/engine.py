"""What a dump asks of the engine while it runs: who it is, what it holds, and to stand still."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from cria.operations.dump.state import Dump


def find_the_engine(work: Dump) -> None:
    from cria.engine.inventory import discovery
    from cria.system.procfs import tree

    if work.any_process and work.target is not None:
        work.root = tree(work.target)[0].pid
    else:
        work.root = discovery.find(work.target, port=work.port)


def lock_it(work: Dump) -> None:
    from cria.system.locks import lock_engine

    work.lock = lock_engine(work.root)


def memory_still_arrives(work: Dump) -> bool:
    from cria.memory.lazy import client
    from cria.system.procfs import tree

    return client.guardian(process.pid for process in tree(work.root)) is not None


def wait_for_its_memory(work: Dump) -> None:
    """Of an engine that was restored lazily; for as long as it may take to bring it to a still point."""
    from cria.memory.lazy import client
    from cria.system.procfs import tree

    client.wait((process.pid for process in tree(work.root)), work.quiesce_seconds)


def unlock_it(work: Dump) -> None:
    if work.lock is not None:
        os.close(work.lock)
        work.lock = None


def find_criu(work: Dump) -> None:
    from cria.criu import program

    criu = program.find()
    asked = program.Asked(criu)
    from cria.criu.client import Client  # protobuf takes as long to load as CRIU to answer

    try:
        work.client = Client(criu)
        _load_what_is_needed_later(criu)
    finally:  # a CRIU that is too old is told before what it lacks
        work.criu_version = ".".join(map(str, asked.require()))


def _load_what_is_needed_later(criu: Path) -> None:
    """Now, that the engine need not stand still for it."""
    from cria.criu import (  # noqa: F401
        link_remap_lock,
        log,
        messages,
        options,
    )
    from cria.criu.images import files, summary  # noqa: F401

    for name in ("fdinfo", "remap_file_path"):
        messages.load(name, criu)


def take_its_inventory(work: Dump) -> None:
    from cria.engine.inventory.collect import take

    work.inventory = take(work.root, any_process=work.any_process)


def check_it_can_be_dumped(work: Dump) -> None:
    from cria.operations.checks import preflight

    preflight.dump(work.inventory, work.output)


def record_the_canary(work: Dump) -> None:
    from cria.engine import canary

    work.canary, work.no_canary = canary.before_dump(work.inventory, wanted=work.wants_canary)


def find_its_files(work: Dump) -> None:
    """Those that the images will not tell of; looked for while the engine still runs.

    Its stores are searched for in its whole heap, unless it will tell of them at the still point.
    """
    from cria.engine import files as belongings
    from cria.engine.control.lookup import find_client

    if work.inflight is None or find_client(work.inventory) is None:
        work.its_stores = belongings.file_stores(work.inventory)
    work.its_temporary_files = belongings.temporary_files(work.inventory)
    work.its_model_files = belongings.model_files(work.inventory)


def pause_the_engine(work: Dump) -> None:
    from cria.engine.control.quiesce import QuiesceSession

    limit, tell = work.quiesce_seconds, work.listener
    work.still = QuiesceSession(work.inventory, work.inflight, seconds=limit, listener=tell)
    work.still.pause()


def resume_the_engine(work: Dump) -> None:
    if work.still is not None and work.lost is None:
        work.still.resume()


def drop_what_can_be_made_again(work: Dump) -> int | None:
    from cria.engine import files as belongings

    assert work.still is not None
    dropped = work.still.drop_caches()
    if work.still.stores is not None:
        work.its_stores = belongings.those_there(work.inventory, work.still.stores)
    elif work.still.quiesced is not None:  # by a part inside that is older
        work.its_stores = belongings.file_stores(work.inventory)
    return dropped


def clear_what_it_left(work: Dump) -> None:
    from cria.checkpoint import saved_files
    from cria.engine import handle
    from cria.system import processes

    if not work.leave_running:
        processes.wait_for_exit(work.inventory.processes)
        owned = (file for file in work.carried if file.owned)
        handle.clean_up(work.inventory, saved_files.names(owned))
    unlock_it(work)
