"""Pack a checkpoint into one archive and unpack it elsewhere: PACK_STEPS and UNPACK_STEPS, then their words."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from cria.checkpoint.handle import Checkpoint
from cria.errors import CheckpointMissing, NoSpace
from cria.operation import Step, run_steps
from cria.system.files import writing_failed

if TYPE_CHECKING:
    from cria.events import Listener
    from cria.model.manifest import Manifest
    from cria.system.files import StagedFile

PlaceOrFile = str | os.PathLike[str] | IO[bytes]


def pack(
    checkpoint: Checkpoint | str | os.PathLike[str],
    archive: PlaceOrFile,
    *,
    listener: Listener | None = None,
) -> None:
    """Write everything that `checkpoint` holds into one compressed archive, a new file or an open one.

    Its digests are compared on the way. Raises a CriaError; a new file then does not exist. CRIU's log
    of the dump stays behind.
    """
    work = Packing(source=checkpoint, archive=archive, listener=listener)
    run_steps("pack", PACK_STEPS, work, listener=listener)


def unpack(
    archive: PlaceOrFile,
    output: str | os.PathLike[str],
    *,
    listener: Listener | None = None,
) -> Checkpoint:
    """Make the new directory `output` the checkpoint that was packed into `archive`.

    Whatever the archive holds, nothing is written beside that directory, nothing that its manifest
    does not declare, and all must be as its digests say. That says nothing of who made it: to restore
    a checkpoint is to run its programs. Raises a CriaError; then `output` does not exist.
    """
    work = Unpacking(archive=archive, output=Path(output).absolute(), listener=listener)
    timings = run_steps("unpack", UNPACK_STEPS, work, listener=listener)
    return Checkpoint(work.output, work.manifest, timings)


@dataclass(kw_only=True)
class Packing:
    """What the steps of one pack know and hand on."""

    source: Checkpoint | str | os.PathLike[str]
    archive: PlaceOrFile
    listener: Listener | None
    checkpoint: Checkpoint = field(init=False)
    staged: StagedFile | None = None
    file: IO[bytes] | None = None


@dataclass(kw_only=True)
class Unpacking:
    """What the steps of one unpack know and hand on."""

    archive: PlaceOrFile
    output: Path
    listener: Listener | None
    file: IO[bytes] | None = None
    tar: Any = None
    staged: Path | None = None
    manifest: Manifest = field(init=False)


# The steps ------------------------------------------------------------------------------------


def open_the_checkpoint(work: Packing) -> None:
    source = work.source
    work.checkpoint = source if isinstance(source, Checkpoint) else Checkpoint.open(source)


def begin_the_archive(work: Packing) -> None:
    from cria.system.files import StagedFile

    if isinstance(work.archive, (str, os.PathLike)):
        work.staged = StagedFile(Path(work.archive).absolute())
        work.file = work.staged.file
    else:
        work.file = work.archive


def remove_the_archive(work: Packing) -> None:
    if work.staged is not None:
        work.staged.discard()


def write_the_archive(work: Packing) -> int:
    from cria.checkpoint import archive
    from cria.events import progress

    assert work.file is not None
    known = work.checkpoint.manifest
    total = sum(part.size_bytes for part in known.parts)
    moved = progress(work.listener, "write-archive", total)
    try:
        archive.write(work.checkpoint.path, known, work.file, moved)
        work.file.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        place = work.staged.target if work.staged else "the archive"
        raise writing_failed(error, place) from error
    return total


def give_it_its_name(work: Packing) -> None:
    if work.staged is not None:
        work.staged.publish()


def open_the_archive(work: Unpacking) -> None:
    from cria.checkpoint import archive

    if isinstance(work.archive, (str, os.PathLike)):
        try:
            work.file = Path(work.archive).open("rb")  # noqa: SIM115 - closed by its own step
        except OSError as error:
            raise CheckpointMissing(
                f"{work.archive} cannot be opened",
                details=error.strerror,
                remedy="name the file that cria pack wrote",
            ) from error
    else:
        work.file = work.archive
    work.tar = archive.decompressed(work.file)


def close_the_archive(work: Unpacking) -> None:
    if work.file is not None and work.file is not work.archive:
        work.file.close()


def stage_the_checkpoint(work: Unpacking) -> None:
    from cria.checkpoint import layout

    work.staged = layout.stage(work.output)


def discard_the_checkpoint(work: Unpacking) -> None:
    from cria.checkpoint import layout

    if work.staged is not None:
        layout.discard(work.staged)


def read_its_manifest(work: Unpacking) -> None:
    """It says what else there is, so that nothing else, and no more, is ever written."""
    from cria.checkpoint import archive

    assert work.staged is not None
    with _reading(work):
        work.manifest = archive.read_manifest(work.tar, work.staged)
    carried = {f"carried/{file.stored_as}": file.stored_bytes for file in work.manifest.carried}
    needed = sum(carried.get(part.path, part.size_bytes) for part in work.manifest.parts)
    room = os.statvfs(work.staged)
    free = room.f_bavail * room.f_frsize
    if needed > free:
        raise NoSpace(
            f"the checkpoint has no room at {work.output}",
            details=f"{needed >> 20} MiB are needed, {free >> 20} MiB are free",
            remedy="choose another file system",
        )


def unpack_its_parts(work: Unpacking) -> int:
    from cria.checkpoint import archive
    from cria.events import progress

    assert work.staged is not None
    total = sum(part.size_bytes for part in work.manifest.parts)
    moved = progress(work.listener, "unpack-parts", total)
    with _reading(work):
        archive.read_parts(work.tar, work.manifest, work.staged, moved)
    close_the_archive(work)
    return total


def publish_it(work: Unpacking) -> None:
    from cria.checkpoint import layout

    assert work.staged is not None
    layout.publish(work.staged, work.output)


PACK_STEPS: tuple[Step[Packing], ...] = (
    Step("open-checkpoint", "open checkpoint", open_the_checkpoint),
    Step("stage-archive", "stage archive", begin_the_archive, undo=remove_the_archive),
    Step("write-archive", "write archive", write_the_archive),
    Step("publish-archive", "publish archive", give_it_its_name),
)
UNPACK_STEPS: tuple[Step[Unpacking], ...] = (
    Step("open-archive", "open archive", open_the_archive, undo=close_the_archive),
    Step("stage-checkpoint", "stage checkpoint", stage_the_checkpoint, undo=discard_the_checkpoint),
    Step("read-manifest", "read manifest", read_its_manifest),
    Step("unpack-parts", "unpack parts", unpack_its_parts),
    Step("publish-checkpoint", "publish checkpoint", publish_it),
)


@contextmanager
def _reading(work: Unpacking) -> Iterator[None]:
    """What goes wrong in here is the archive's fault or the disk's."""
    from cria.checkpoint import archive

    try:
        yield
    except archive.damage() as error:
        raise archive.refused(str(error)) from error
    except OSError as error:
        raise writing_failed(error, work.output) from error
