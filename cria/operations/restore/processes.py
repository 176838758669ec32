"""CRIU brings the processes back; they run once their ports are known to be ours."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from cria.errors import NoSuchProcess, RestoreFailed
from cria.model.manifest import MEMORY
from cria.operations.restore.isolation import remove_the_view

if TYPE_CHECKING:
    from cria.operations.restore.state import Restore, Source


def restore_the_processes(work: Restore) -> int:
    """CRIU rebuilds every process; it waits, none of them running yet, when all is in place."""
    from cria.criu import log
    from cria.criu.options import restore_options
    from cria.isolation.namespaces import OwnNamespaces
    from cria.network import connection_locks

    assert work.view is not None and work.place is not None
    message = restore_options(work.client, work.checkpoint.manifest.options)
    images = os.open(work.view, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    message.images_dir_fd = images
    message.log_file = "restore.log"
    message.lazy_pages = work.wants_lazy
    connections = connection_locks.needed(work.checkpoint.images, work.plan, work.client.criu)
    work.locks.enter_context(connection_locks.locked(connections, work.netns()))
    if work.reservation is not None:
        work.reservation.open()
    try:
        inside = work.place if isinstance(work.place, OwnNamespaces) else None
        with log.explained(work.view / "restore.log", during=RestoreFailed):
            plugins = work.checkpoint.manifest.gpu_state is None
            work.conversation = work.client.restore(message, inside, plugins=plugins)
            threading.Thread(target=_load_what_is_needed_later).start()
            work.inner_root = work.conversation.wait_for("post-restore")
        work.root = work.place.host_pid(work.inner_root)
    finally:
        os.close(images)
    return 0


def _load_what_is_needed_later() -> None:
    """While CRIU is at work: loading the HTTP client alone takes 20 ms."""
    from cria.engine.control import quiesce  # noqa: F401
    from cria.network.listeners import check_owned, seal  # noqa: F401


def has_memory_aside(work: Source) -> bool:

    return (work.checkpoint.path / MEMORY).is_dir()


def put_its_memory_back(work: Restore) -> int:
    """What the checkpoint holds compressed goes straight into the processes, which CRIU still holds."""
    from cria.memory import compressed

    assert work.place is not None
    aside = work.checkpoint.path / MEMORY
    return compressed.put_back(aside, work.place.host_pid, work.client.criu)


def end_the_processes(work: Restore) -> None:
    from cria.system import processes
    from cria.system.procfs import tree

    if work.conversation is not None:
        work.conversation.abort()
    work.locks.close()
    with suppress(NoSuchProcess):
        family = tree(work.root) if work.root else ()
        processes.kill(process.pid for process in family)
        processes.wait_for_exit(family)


def check_the_ports_are_ours(work: Restore) -> None:
    """Each port now has exactly one listener, and it is a restored one: CRIU itself would not tell."""
    from cria.network.listeners import check_owned, seal
    from cria.system.procfs import tree

    # Sealed first: what the check sees then remains true when the ports are let go.
    seal(work.plan, work.netns())
    check_owned(work.plan, (process.pid for process in tree(work.root)), work.netns())
    if work.reservation is not None:
        work.reservation.release()


def let_it_run(work: Restore) -> None:
    from cria.criu import log
    from cria.isolation import forwarded_ports
    from cria.isolation.namespaces import OwnNamespaces
    from cria.network.connection_locks import remove_leftovers

    assert work.view is not None and work.place is not None
    with log.explained(work.view / "restore.log", during=RestoreFailed):
        work.conversation.finish()
    if work.link_remap_lock is not None:  # with its last act CRIU has removed its link remaps
        work.link_remap_lock.release()
    work.locks.close()
    if work.checkpoint.manifest.options.network_lock != "SKIP":
        remove_leftovers(work.checkpoint.images, work.plan, work.netns(), work.client.criu)
    if isinstance(work.place, OwnNamespaces):
        forwarded_ports.carry(work.forwards, work.place)
    work.place.settle(work.inner_root)
    remove_the_view(work)


def let_its_requests_go_on(work: Restore) -> None:
    """An engine that was quiesced for its dump wakes up paused."""
    from cria.engine.control import quiesce

    quiesced = work.checkpoint.manifest.quiesced
    if quiesced is not None:
        quiesce.resume_restored(work.root, quiesced, seconds=work.wait_seconds)


def wait_until_healthy(work: Restore) -> None:
    from cria.engine import health

    published = work.checkpoint.manifest.published
    if published:
        work.url = health.url(work.reached_at(published[0]))
        health.wait_until_healthy(work.url, work.root, seconds=work.wait_seconds)


def compare_the_canary(work: Restore) -> None:
    """Before anyone is told the url: the engine computes what it computed before its dump."""
    from cria.engine import canary

    recorded = work.checkpoint.manifest.canary
    if recorded is not None and work.url is not None and work.wants_canary:
        canary.compare(work.url, recorded, seconds=work.wait_seconds)
