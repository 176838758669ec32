"""The steps of a dump that write the checkpoint: from a staged directory to a published checkpoint."""

from __future__ import annotations

from cria.checkpoint import fingerprints, layout
from cria.criu.images.directory import CriuImages
from cria.events import progress
from cria.memory import compressed, zero_pages
from cria.memory.shared import materialize
from cria.model import manifest
from cria.model.manifest import MANIFEST, MEMORY, Manifest
from cria.model.version import VERSION
from cria.operations.dump.state import DumpState
from cria.system import digests, processes
from cria.system.host import this_host


def stage_checkpoint(state: DumpState) -> None:
    state.staged.create()


def discard_checkpoint(state: DumpState) -> None:
    if state.lost is None:
        state.staged.discard()
    elif not state.staged.published:  # the images are all that is left of the engine
        state.warn(f"the checkpoint is not finished; its images are kept: {state.staged.path}")


def shares_memory(state: DumpState) -> bool:
    """Say whether the engine is a clone that maps memory from a backing store."""
    return bool(materialize.shared_files(state.images))


def materialize_shared_memory(state: DumpState) -> int:
    """Copy what the engine mapped from a backing store: that is of one host, and may be removed."""
    materialize.materialize(state.images)
    return layout.size_bytes(state.staged.images)


def take_fingerprints(state: DumpState) -> None:
    images = state.images
    saved = {name for original in state.saved_files for name in original.file.every_name}
    read = fingerprints.needed(images.regular_files(), images.remapped_ids, saved)
    state.fingerprints = fingerprints.take(read | set(state.model_files), state.files_root)


def compresses(state: DumpState) -> bool:
    return state.request.compress


def is_plain(state: DumpState) -> bool:
    return not state.request.compress


def compress_pages(state: DumpState) -> int:
    images = state.images
    size = layout.size_bytes(images.path)
    moved = progress(state.request.listener, "compress-pages", size)
    extracted = CriuImages(state.staged.path / MEMORY, images.program)
    extracted.path.mkdir(mode=layout.PRIVATE)
    for process in [images.memory(pid) for pid in images.pids]:
        compressed.extract(images, extracted, process, moved)
    compressed.compress_shared_pages(images.path, moved)
    return size


def drop_zero_pages(state: DumpState) -> int:
    images = state.images
    size = layout.size_bytes(images.path)
    for process in [images.memory(pid) for pid in images.pids]:
        zero_pages.drop_zero_pages(images, process)
    return size


def digest_parts(state: DumpState) -> int:
    """Take the digest of each part and write it to the disk: no digest of what may still be lost.

    An engine that ends stays frozen meanwhile, for it must not end before its checkpoint is whole on
    the disk. An engine that runs on has been resumed before.
    """
    directory = state.staged.path
    names = layout.parts(directory)
    size = sum((directory / name).stat().st_size for name in names)
    moved = progress(state.request.listener, "digest-parts", size)
    state.parts = digests.parts(directory, names, moved)
    return size


def write_manifest(state: DumpState) -> None:
    state.manifest = Manifest(
        cria_version=VERSION,
        created=manifest.now(),
        host=this_host(),
        criu_version=state.criu_version,
        options=state.options,
        inventory=state.inventory,
        api_endpoints=tuple(socket.local for socket in state.inventory.api_listeners()),
        saved_files=tuple(original.file for original in state.saved_files),
        parts=state.parts,
        fingerprints=state.fingerprints,
        timings=state.stopwatch.read(),
        canary=state.canary,
        no_canary=state.no_canary,
        quiesced=state.quiesce.quiesced,
        no_quiesce=state.quiesce.why_not,
        gpu_state=state.gpu_state,
    )
    manifest.write(state.manifest, state.staged.path / MANIFEST)


def publish_checkpoint(state: DumpState) -> None:
    state.staged.publish()


def withdraw_checkpoint(state: DumpState) -> None:
    """Undo the publication, unless the checkpoint is all that is left of the engine."""
    ended = not state.request.leave_running and processes.wait_for_exit([state.inventory.root])
    if not ended and state.lost is None:
        state.staged.withdraw()
