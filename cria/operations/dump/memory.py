"""The steps of a dump with the engine frozen: CRIU writes its memory, cria saves its files, it goes on or ends."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from cria.checkpoint import layout, saved_files
from cria.criu import log
from cria.criu.images import files
from cria.criu.images.directory import CriuImages
from cria.criu.link_remap_lock import LinkRemapLock
from cria.criu.options import dump_options
from cria.errors import CriaError, DumpFailed, EngineBusy
from cria.isolation.namespaces import NamespacesOfProcess, in_other_pid_namespace
from cria.model.manifest import DUMP_LOG, SAVED_FILES
from cria.operations.dump.engine import resume_engine
from cria.operations.dump.gpu import restore_memory_of_live_engine
from cria.operations.dump.state import DumpState
from cria.system import processes

# How long an engine that is to run on stays frozen while another dump holds the link-remap lock.
_UNDO_SECONDS = 5.0


def write_images(state: DumpState) -> int:
    """Have CRIU freeze every process and write the images; CRIU waits when they are whole."""
    request = state.request
    state.options, message = dump_options(
        state.client,
        state.inventory,
        leave_running=request.leave_running,
        direct_io=request.direct_io,
    )
    inside = NamespacesOfProcess(state.root) if in_other_pid_namespace(state.root) else None
    message.pid = inside.inner_pid if inside else state.root
    state.files_root = inside.root if inside else Path("/")
    has_gpus = state.has("gpu_memory")
    if inside is None:
        state.link_remap_lock = LinkRemapLock(request.quiesce_seconds)
        if state.link_remap_lock.waited and not has_gpus:
            state.quiesce.extend_lease(0)  # refused where the engine has gone on meanwhile
    message.tcp_skip_in_flight = request.skip_in_flight
    images = os.open(state.staged.images, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    message.images_dir_fd = images
    message.log_file = DUMP_LOG
    try:
        with log.explain_failure(state.staged.images / DUMP_LOG, during=DumpFailed):
            state.conversation = state.client.dump(message, inside, plugins=not has_gpus)
            state.conversation.wait_for("post-dump")
    finally:
        os.close(images)
    return layout.size_bytes(state.staged.images)


def unfreeze(state: DumpState) -> None:
    """Have CRIU fail, so that it lets the engine run on."""
    if state.has("conversation"):
        _take_link_remap_lock_again(state)
        state.conversation.abort()
    _release_link_remap_lock(state)


def save_files(state: DumpState) -> int:
    """Save shared memory, link remaps, stores and temporary files: of the same moment as the memory."""
    state.images = images = CriuImages(state.staged.images, state.client.program)
    opened = (f for f in images.regular_files() if f.file_id not in images.remapped_ids)
    paths = saved_files.needed(file.path for file in opened)
    temporary = [path for path in map(Path, state.temporary_files) if path not in paths]
    state.saved_files = saved_files.save(
        [*paths, *map(Path, state.stores), *temporary],
        state.staged.path / SAVED_FILES,
        state.files_root,
        temporary=temporary,
        uids=state.uids,
        inodes={(file.device, file.inode) for file in state.inventory.descriptors}
        | {(file.device, file.inode) for file in state.inventory.shared_files},
    )
    if not state.request.leave_running:  # else CRIU removes them when it lets the engine run
        saved_files.remove_link_remaps(state.saved_files, state.files_root, state.uids)
        _release_link_remap_lock(state)
    return sum(original.file.stored_bytes for original in state.saved_files)


def check_images(state: DumpState) -> None:
    """Compare the listeners in the images with the inventory: CRIU can omit some silently (CRIU #2764)."""
    files.check_complete(state.images.files, state.inventory.listeners())


def resume(state: DumpState) -> None:
    """Let the engine run on. What is left to do needs the disk only, and takes as long as reading it once."""
    _finish(state)
    restore_memory_of_live_engine(state)
    if state.lost is None:
        resume_engine(state)


def end(state: DumpState) -> None:
    try:
        _finish(state)
    except CriaError:
        # A clone's PID namespace ends with its root process, and kills CRIU before CRIU can answer.
        if not processes.wait_for_exit([state.inventory.root]):
            raise


def runs_on(state: DumpState) -> bool:
    return state.request.leave_running


def ends(state: DumpState) -> bool:
    return not state.request.leave_running


def _finish(state: DumpState) -> None:
    """Have CRIU do what its options said from the start: let the engine run, or kill it."""
    with log.explain_failure(state.staged.images / DUMP_LOG, during=DumpFailed):
        state.conversation.finish()
    _release_link_remap_lock(state)


def _take_link_remap_lock_again(state: DumpState) -> None:
    """CRIU is about to remove its link remaps by name, and another dump may use these names by now."""
    if state.link_remap_lock is not None and not state.link_remap_lock.held:
        with suppress(EngineBusy):  # rather the other dump fails than that this engine stays frozen
            state.link_remap_lock = LinkRemapLock(_UNDO_SECONDS)


def _release_link_remap_lock(state: DumpState) -> None:
    if state.link_remap_lock is not None:
        state.link_remap_lock.release()
