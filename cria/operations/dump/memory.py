"""The frozen engine: CRIU writes its memory, cria carries its files, and it goes on or ends."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from cria.errors import CriaError, DumpFailed, EngineBusy
from cria.model.manifest import CARRIED, DUMP_LOG, IMAGES
from cria.operations.dump import gpu
from cria.operations.dump.engine import resume_the_engine

if TYPE_CHECKING:
    from cria.operations.dump.state import Dump

UNDO_SECONDS = 5.0  # how long an engine that shall run on stays frozen for others' sake


def freeze_and_write_memory(work: Dump) -> int:
    """CRIU seizes every process and writes the images; it waits, all frozen, when they are whole."""
    from cria.checkpoint import layout
    from cria.criu import log
    from cria.criu.link_remap_lock import LinkRemapLock
    from cria.criu.options import dump_options
    from cria.isolation.namespaces import NamespacesOf, is_elsewhere

    assert work.staged is not None
    work.options, message = dump_options(
        work.client,
        work.inventory,
        leave_running=work.leave_running,
        direct_io=work.direct_io,
    )
    inside = NamespacesOf(work.root) if is_elsewhere(work.root) else None
    message.pid = inside.inner_pid if inside else work.root
    work.its_root = inside.root if inside else Path("/")
    if inside is None:
        work.link_remap_lock = LinkRemapLock(work.quiesce_seconds)
        if work.link_remap_lock.waited and work.still is not None and work.gpu is None:
            work.still.extend_lease(0)  # refused where it has gone on meanwhile
    message.tcp_skip_in_flight = work.skip_in_flight
    images = os.open(work.staged / IMAGES, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    message.images_dir_fd = images
    message.log_file = DUMP_LOG
    try:
        with log.explained(work.staged / IMAGES / DUMP_LOG, during=DumpFailed):
            work.conversation = work.client.dump(message, inside, plugins=work.gpu is None)
            work.conversation.wait_for("post-dump")
    finally:
        os.close(images)
    return layout.size_bytes(work.staged / IMAGES)


def let_it_run_on(work: Dump) -> None:
    if work.conversation is not None:
        _take_link_remap_lock_again(work)
        work.conversation.abort()
    _release_link_remap_lock(work)


def carry_its_files(work: Dump) -> int:
    """Shared memory, link remaps, stores and temporary files: with the memory they are one moment."""
    from cria.checkpoint import saved_files
    from cria.criu.images import files, summary

    assert work.staged is not None
    images, criu = work.staged / IMAGES, work.client.criu
    work.files = files.read(images)
    remapped = {remap.file_id for remap in summary.remaps(images, criu)}
    opened = files.regular_files(work.files, criu)
    paths = saved_files.wanted(file.path for file in opened if file.file_id not in remapped)
    temporary = [path for path in map(Path, work.its_temporary_files) if path not in paths]
    work.carried = saved_files.store(
        [*paths, *map(Path, work.its_stores), *temporary],
        work.staged / CARRIED,
        work.its_root,
        temporary=temporary,
    )
    if not work.leave_running:  # else CRIU removes them, when it lets the engine run
        saved_files.remove_links(work.carried, work.its_root)
        _release_link_remap_lock(work)
    return sum(file.stored_bytes for file in work.carried)


def check_the_images(work: Dump) -> None:
    """CRIU can leave out listeners without a word (its issue 2764): compare with what we saw."""
    from cria.criu.images import files

    files.check_complete(work.files, work.inventory.listeners(), work.client.criu)


def resume_it_if_it_lives_on(work: Dump) -> None:
    """What is left to do needs the disk only, and takes as long as reading the checkpoint once."""
    _finish(work)
    gpu.give_it_back_or_remember(work)
    if work.lost is None:
        resume_the_engine(work)


def lives_on(work: Dump) -> bool:
    return work.leave_running


def ends(work: Dump) -> bool:
    return not work.leave_running


def end_it_unless_it_lives_on(work: Dump) -> None:
    """A clone's PID namespace ends with its root, and takes CRIU with it before it can say so."""
    from cria.system import processes

    try:
        _finish(work)
    except CriaError:
        if not processes.wait_for_exit([work.inventory.root]):
            raise


def _finish(work: Dump) -> None:
    """CRIU was told when it was called whether it shall end the engine or let it run."""
    from cria.criu import log

    place = (None if work.published else work.staged) or work.output
    with log.explained(place / IMAGES / DUMP_LOG, during=DumpFailed):
        work.conversation.finish()
    _release_link_remap_lock(work)


def _take_link_remap_lock_again(work: Dump) -> None:
    """CRIU will remove its link remaps by their names, which may be another dump's by now."""
    from cria.criu.link_remap_lock import LinkRemapLock

    if work.link_remap_lock is not None and not work.link_remap_lock.held:
        with suppress(EngineBusy):  # rather that dump fails than that this engine stays frozen
            work.link_remap_lock = LinkRemapLock(UNDO_SECONDS)


def _release_link_remap_lock(work: Dump) -> None:
    if work.link_remap_lock is not None:
        work.link_remap_lock.release()
