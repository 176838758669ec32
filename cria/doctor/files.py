"""Compare the files that a checkpoint's engine had open with those that are here now."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from cria.checkpoint import Checkpoint
from cria.doctor.descriptors import may_grow
from cria.doctor.row import Row, fail, ok, skip
from cria.errors import CheckpointMismatch
from cria.images.files import RegularFile
from cria.storage import record

_FLAGS = os.O_ACCMODE | os.O_APPEND
_NOT_FILES = ("/proc/", "/dev/shm/", "/dev/pts/")  # made with the processes, or carried
_PUT_BACK = "put the file back as it was at the dump"


def opened(checkpoint: Checkpoint, criu: Path) -> Iterator[Row]:
    """Files that are missing or have another mode or size: CRIU names one of them, and gives up."""
    if any(checkpoint.images.glob("mountpoints-*.img")):
        yield skip("open files", "the checkpoint has a mount namespace of its own")
        return
    known = {file.path for file in checkpoint.manifest.recorded}
    for file in checked(checkpoint, criu):
        yield from _compared(file, recorded_too=file.path in known)


def recorded(checkpoint: Checkpoint, _criu: Path) -> Iterator[Row]:
    """Models, programs and libraries, by the size and the sampled digest that they had at the dump."""
    for file, what, present in record.differences(checkpoint.manifest.recorded):
        then = f"{file.size_bytes} bytes, digest {file.digest[:16]}"
        yield fail(f"{file.path} {what}", present, _PUT_BACK, CheckpointMismatch, recorded=then)


def libraries(checkpoint: Checkpoint, criu: Path) -> Iterator[Row]:
    """Programs and libraries that were replaced: CRIU compares the build-id of ELF files."""
    from cria.doctor.elf import build_id

    for file in checked(checkpoint, criu):
        if not file.build_id or not os.path.isfile(file.path):  # noqa: PTH113
            continue
        present = build_id(file.path)
        if present != file.build_id:
            yield fail(
                f"{file.path} was replaced",
                f"build-id {present.hex() if present else 'none'}",
                "install the version that the engine was dumped with",
                CheckpointMismatch,
                recorded=file.build_id.hex(),
            )


def all_same(checkpoint: Checkpoint, criu: Path) -> Iterator[Row]:
    """Every mismatch of files and libraries, or one word that there is none."""
    rows = [row for check in (recorded, opened) for row in check(checkpoint, criu)]
    named = tuple(row.subject.rpartition(" has ")[0] + " " for row in rows)
    rows += [row for row in libraries(checkpoint, criu) if not row.subject.startswith(named)]
    files = {file.path for file in checked(checkpoint, criu)}
    files |= {file.path for file in checkpoint.manifest.recorded}
    yield from rows or [ok("files", f"{len(files)} are as they were")]


def checked(checkpoint: Checkpoint, criu: Path) -> tuple[RegularFile, ...]:
    """The files that CRIU opens by their path: not those it remade, nor those cria carries or begins."""
    from cria.images import facts, files

    remade = {remap.file_id for remap in facts.remaps(checkpoint.images, criu)}
    carried = {n for file in checkpoint.manifest.carried for n in (file.path, *file.names)}
    found: dict[tuple[str, int], RegularFile] = {}
    for file in files.regular_files(files.read(checkpoint.images), criu):
        remade_or_carried = file.file_id in remade or file.path in carried
        if not remade_or_carried and not file.path.startswith(_NOT_FILES):
            found.setdefault((file.path, file.flags & _FLAGS), file)
    return tuple(found.values())


def _compared(file: RegularFile, *, recorded_too: bool) -> Iterator[Row]:
    """What CRIU would mind; presence and size of files that are `recorded_too` are told there."""
    try:
        present = os.stat(file.path)  # noqa: PTH116
    except (FileNotFoundError, NotADirectoryError):
        # cria restore begins a log anew that was rotated away.
        if not may_grow(file.flags) and not recorded_too:
            yield _different(file, "is missing", "nothing", _described(file))
        return
    if file.mode and file.mode != present.st_mode:
        yield _different(file, "has another mode", f"{present.st_mode:o}", f"{file.mode:o}")
    elif recorded_too or may_grow(file.flags) or not stat.S_ISREG(file.mode):
        return
    elif present.st_size != file.size_bytes:
        here, then = f"{present.st_size} bytes", f"{file.size_bytes} bytes"
        yield _different(file, "has another size", here, then)


def _different(file: RegularFile, what: str, present: str, recorded: str) -> Row:
    return fail(f"{file.path} {what}", present, _PUT_BACK, CheckpointMismatch, recorded=recorded)


def _described(file: RegularFile) -> str:
    return "a directory" if stat.S_ISDIR(file.mode) else f"{file.size_bytes} bytes"
