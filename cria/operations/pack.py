"""Pack a checkpoint into one archive and unpack it elsewhere: PACK_STEPS and UNPACK_STEPS, then their functions."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from cria.checkpoint import archive
from cria.checkpoint.handle import Checkpoint
from cria.checkpoint.layout import StagedCheckpoint
from cria.errors import CheckpointMissing, NoSpace
from cria.events import Listener, progress
from cria.model.manifest import SAVED_FILES, Manifest
from cria.operation import Step, StepState, run_steps
from cria.requests import StrPath
from cria.system.files import StagedFile, writing_failed


def pack(
    checkpoint: Checkpoint | StrPath,
    file: StrPath | IO[bytes],
    *,
    listener: Listener | None = None,
) -> None:
    """Write all parts of `checkpoint` into one compressed archive: a new file, or an open one.

    Digests are compared on the way. Raises a CriaError; a new file then does not exist. CRIU's log of
    the dump is no part.
    """
    run_steps("pack", PACK_STEPS, PackState(checkpoint, file, listener), listener=listener)


def unpack(
    file: StrPath | IO[bytes], output: StrPath, *, listener: Listener | None = None
) -> Checkpoint:
    """Unpack an archive into the new directory `output` and return the checkpoint there.

    Whatever the archive holds: nothing is written outside that directory, nothing that its manifest
    does not declare, and every part must match its digest. That does not tell who made the archive,
    and to restore a checkpoint is to run its programs. Raises a CriaError; `output` then does not
    exist.
    """
    state = UnpackState(file, StagedCheckpoint(Path(output).absolute()), listener)
    timings = run_steps("unpack", UNPACK_STEPS, state, listener=listener)
    return Checkpoint(state.staged.output, state.manifest, timings)


@dataclass
class PackState(StepState):
    """What the steps of one pack hand on to each other. `staged` is None for an archive that was open."""

    source: Checkpoint | StrPath
    target: StrPath | IO[bytes]
    listener: Listener | None
    checkpoint: Checkpoint = field(init=False)
    staged: StagedFile | None = None
    file: IO[bytes] = field(init=False)


@dataclass
class UnpackState(StepState):
    """What the steps of one unpack hand on to each other."""

    source: StrPath | IO[bytes]
    staged: StagedCheckpoint
    listener: Listener | None
    file: IO[bytes] = field(init=False)
    tar: IO[bytes] = field(init=False)
    manifest: Manifest = field(init=False)


def open_checkpoint(state: PackState) -> None:
    source = state.source
    state.checkpoint = source if isinstance(source, Checkpoint) else Checkpoint.open(source)


def stage_archive(state: PackState) -> None:
    if isinstance(state.target, (str, os.PathLike)):
        state.staged = StagedFile(Path(state.target).absolute())
        state.file = state.staged.file
    else:
        state.file = state.target


def discard_archive(state: PackState) -> None:
    if state.staged is not None:
        state.staged.discard()


def write_archive(state: PackState) -> int:
    manifest = state.checkpoint.manifest
    size = sum(part.size_bytes for part in manifest.parts)
    moved = progress(state.listener, "write-archive", size)
    try:
        archive.write(state.checkpoint.path, manifest, state.file, moved)
        state.file.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        target = state.staged.target if state.staged else "the archive"
        raise writing_failed(error, target) from error
    return size


def publish_archive(state: PackState) -> None:
    if state.staged is not None:
        state.staged.publish()


def open_archive(state: UnpackState) -> None:
    if isinstance(state.source, (str, os.PathLike)):
        try:
            state.file = Path(state.source).open("rb")  # noqa: SIM115 - closed by a later step
        except OSError as error:
            raise CheckpointMissing(
                f"{state.source} cannot be opened",
                details=error.strerror,
                remedy="name the file that cria pack wrote",
            ) from error
    else:
        state.file = state.source
    state.tar = archive.decompressed(state.file)


def close_archive(state: UnpackState) -> None:
    if state.has("file") and state.file is not state.source:
        state.file.close()


def stage_checkpoint(state: UnpackState) -> None:
    state.staged.create()


def discard_checkpoint(state: UnpackState) -> None:
    state.staged.discard()


def read_manifest(state: UnpackState) -> None:
    """Read the manifest, which declares all other parts, and check that they have room on the disk."""
    with _reading(state):
        state.manifest = archive.read_manifest(state.tar, state.staged.path)
    stored = {
        f"{SAVED_FILES}/{file.stored_as}": file.stored_bytes for file in state.manifest.saved_files
    }
    needed = sum(stored.get(part.path, part.size_bytes) for part in state.manifest.parts)
    room = os.statvfs(state.staged.path)
    free = room.f_bavail * room.f_frsize
    if needed > free:
        raise NoSpace(
            f"the checkpoint has no room at {state.staged.output}",
            details=f"{needed >> 20} MiB are needed, {free >> 20} MiB are free",
            remedy="choose another file system",
        )


def unpack_parts(state: UnpackState) -> int:
    size = sum(part.size_bytes for part in state.manifest.parts)
    moved = progress(state.listener, "unpack-parts", size)
    with _reading(state):
        archive.read_parts(state.tar, state.manifest, state.staged.path, moved)
    close_archive(state)
    return size


def publish_checkpoint(state: UnpackState) -> None:
    state.staged.publish()


PACK_STEPS: tuple[Step[PackState], ...] = (
    Step("open-checkpoint", "open checkpoint", open_checkpoint),
    Step("stage-archive", "stage archive", stage_archive, undo=discard_archive),
    Step("write-archive", "write archive", write_archive),
    Step("publish-archive", "publish archive", publish_archive),
)
UNPACK_STEPS: tuple[Step[UnpackState], ...] = (
    Step("open-archive", "open archive", open_archive, undo=close_archive),
    Step("stage-checkpoint", "stage checkpoint", stage_checkpoint, undo=discard_checkpoint),
    Step("read-manifest", "read manifest", read_manifest),
    Step("unpack-parts", "unpack parts", unpack_parts),
    Step("publish-checkpoint", "publish checkpoint", publish_checkpoint),
)


@contextmanager
def _reading(state: UnpackState) -> Iterator[None]:
    """Turn what goes wrong inside into the archive's error or the disk's."""
    try:
        yield
    except archive.damage() as error:
        raise archive.refused(str(error)) from error
    except OSError as error:
        raise writing_failed(error, state.staged.output) from error
