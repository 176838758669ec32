"""The steps of a restore that choose where the engine lives: namespaces, images with new ports, saved files."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from cria.checkpoint import saved_files
from cria.criu.images.directory import private_view
from cria.criu.link_remap_lock import LinkRemapLock
from cria.errors import PathTaken, PidTaken
from cria.isolation.namespaces import CloneNamespaces, HostNamespaces
from cria.isolation.view import make_logs, prepare_view
from cria.memory import compressed
from cria.model.manifest import SAVED_FILES
from cria.network.images import apply_plan
from cria.operations.checks import preflight
from cria.operations.restore.state import RestoreState
from cria.system.locks import HostLock


def choose_namespaces(state: RestoreState) -> None:
    """Choose the host's namespaces where the engine's PIDs and paths are free, else make new ones."""
    isolate = state.request.isolate
    state.namespaces = HostNamespaces()
    view = prepare_view(
        state.checkpoint.criu_images,
        state.checkpoint.manifest,
        state.tag,
        shares_network=isolate != "net",
    )
    if isolate in ("auto", "never"):
        # Of two restores at once both would find the same PIDs and paths free. The lock is held until the
        # processes exist; then the next preflight sees them.
        state.host_lock = HostLock("restore", state.request.wait_seconds)
        try:
            preflight.restore(state.checkpoint)
        except (PidTaken, PathTaken) as taken:
            if isolate == "never":
                raise
            state.host_lock.release()
            state.warn(f"{taken.message}: the engine gets namespaces of its own")
        else:
            return
    make_logs(own for own, _ in view.logs)
    state.unix_names = view.abstract
    state.namespaces = CloneNamespaces(
        copy_on_write=view.copy_on_write, binds=view.binds, network=isolate == "net"
    )


def leave_namespaces(state: RestoreState) -> None:
    if state.has("namespaces"):
        state.namespaces.leave()
    if state.host_lock is not None:
        state.host_lock.release()


def prepare_images(state: RestoreState) -> None:
    """Make a directory of links to the images, with its own files.img for the new ports."""
    state.view = Path(tempfile.mkdtemp(prefix="cria-restore-"))
    private_view(state.checkpoint.images, state.view)
    compressed.decompress_pages_files(state.checkpoint.images, state.view)
    files = apply_plan(state.checkpoint.criu_images.files, state.plan, state.unix_names)
    if state.backing_store is not None:
        files = state.backing_store.link_into(state.view, files)
    files.write(state.view, durable=False)


def remove_images(state: RestoreState) -> None:
    if state.has("view"):
        shutil.rmtree(state.view, ignore_errors=True)


def put_back_files(state: RestoreState) -> int:
    """Put back what the engine finds missing. In namespaces of its own that is everything."""
    saved = state.checkpoint.manifest.saved_files
    if state.own_namespaces is None:
        # A temporary file may still be in its place: preflight saw that it is the one of the dump.
        saved = saved_files.missing(saved)
        if saved_files.has_link_remaps(saved):
            state.link_remap_lock = LinkRemapLock(state.request.wait_seconds)
    return saved_files.put_back(
        saved, state.checkpoint.path / SAVED_FILES, state.namespaces.root, state.placed_files
    )


def remove_files(state: RestoreState) -> None:
    if state.own_namespaces is not None:
        return  # they end with the namespaces
    uids = {process.uid for process in state.checkpoint.manifest.inventory.processes}
    saved_files.remove_placed(state.placed_files, link_remaps=False, uids=uids)
    if state.link_remap_lock is not None and state.link_remap_lock.held:
        saved_files.remove_placed(state.placed_files, link_remaps=True, uids=uids)
        state.link_remap_lock.release()
