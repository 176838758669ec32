"""CRIU brings the processes back; they run once their ports are known to be ours."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from cria.errors import NoSuchProcess, RestoreFailed
from cria.restore.place import remove_the_view

if TYPE_CHECKING:
    from cria.restore.work import Restore, Source


def restore_the_processes(work: Restore) -> int:
    """CRIU rebuilds every process; it waits, none of them running yet, when all is in place."""
    from cria.criu import log
    from cria.criu.options import restore_options
    from cria.namespaces.place import OwnNamespaces
    from cria.ports import locks

    assert work.view is not None and work.place is not None
    message = restore_options(work.client, work.checkpoint.manifest.options)
    images = os.open(work.view, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    message.images_dir_fd = images
    message.log_file = "restore.log"
    message.lazy_pages = work.wants_lazy
    connections = locks.needed(work.checkpoint.images, work.plan, work.client.criu)
    work.locks.enter_context(locks.locked(connections, work.netns()))
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
    from cria.engine import canary, health, quiesce  # noqa: F401
    from cria.ports import check_owned, seal  # noqa: F401


def has_memory_aside(work: Source) -> bool:
    from cria.storage import layout

    return (work.checkpoint.path / layout.MEMORY).is_dir()


def put_its_memory_back(work: Restore) -> int:
    """What the checkpoint holds compressed goes straight into the processes, which CRIU still holds."""
    from cria.pages import stored
    from cria.storage import layout

    assert work.place is not None
    aside = work.checkpoint.path / layout.MEMORY
    return stored.put_back(aside, work.place.host_pid, work.client.criu)


def end_the_processes(work: Restore) -> None:
    from cria.process import ended
    from cria.process.tree import tree

    if work.conversation is not None:
        work.conversation.abort()
    work.locks.close()
    with suppress(NoSuchProcess):
        family = tree(work.root) if work.root else ()
        ended.kill(process.pid for process in family)
        ended.wait(family)


def check_the_ports_are_ours(work: Restore) -> None:
    """Each port now has exactly one listener, and it is a restored one: CRIU itself would not tell."""
    from cria.ports import check_owned, seal
    from cria.process.tree import tree

    # Sealed first: what the check sees then remains true when the ports are let go.
    seal(work.plan, work.netns())
    check_owned(work.plan, (process.pid for process in tree(work.root)), work.netns())
    if work.reservation is not None:
        work.reservation.release()


def let_it_run(work: Restore) -> None:
    from cria.criu import log
    from cria.namespaces import published
    from cria.namespaces.place import OwnNamespaces
    from cria.ports.locks import remove_leftovers

    assert work.view is not None and work.place is not None
    with log.explained(work.view / "restore.log", during=RestoreFailed):
        work.conversation.finish()
    if work.turn is not None:  # with its last act CRIU has removed its link remaps
        work.turn.end()
    work.locks.close()
    if work.checkpoint.manifest.options.network_lock != "SKIP":
        remove_leftovers(work.checkpoint.images, work.plan, work.netns(), work.client.criu)
    if isinstance(work.place, OwnNamespaces):
        published.carry(work.forwards, work.place)
    work.place.settle(work.inner_root)
    remove_the_view(work)
