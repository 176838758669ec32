"""Compare the files that a checkpoint's engine had open with those that are here now."""

from __future__ import annotations

import os
import platform
import shutil
import stat
from collections.abc import Iterator

from cria.checkpoint import fingerprints
from cria.checkpoint.handle import Checkpoint
from cria.criu import program
from cria.criu.images.files import RegularFile
from cria.errors import (
    CheckpointDamaged,
    CheckpointMismatch,
    CriaError,
    CriuUnsuitable,
    NoSpace,
    PathTaken,
    PortPlanRefused,
    PortTaken,
)
from cria.model.manifest import SAVED_FILES
from cria.operations.checks.descriptors import may_grow
from cria.operations.checks.rows import Row, fail, of_error, ok, skip, warn
from cria.system.host import available_memory

_FLAGS = os.O_ACCMODE | os.O_APPEND
_NOT_FILES = ("/proc/", "/dev/shm/", "/dev/pts/")  # made with the processes, or carried
_PUT_BACK = "put the file back as it was at the dump"


def opened(checkpoint: Checkpoint) -> Iterator[Row]:
    """Files that are missing or have another mode or size: CRIU names one of them, and gives up."""
    if any(checkpoint.images.glob("mountpoints-*.img")):
        yield skip("open files", "the checkpoint has a mount namespace of its own")
        return
    fingerprinted = {file.path for file in checkpoint.manifest.fingerprints}
    for file in checked(checkpoint):
        yield from _compared(file, recorded_too=file.path in fingerprinted)


def recorded(checkpoint: Checkpoint) -> Iterator[Row]:
    """Models, programs and libraries, by the size and the sampled digest that they had at the dump."""
    for file, what, present in fingerprints.differences(checkpoint.manifest.fingerprints):
        then = f"{file.size_bytes} bytes, digest {file.digest[:16]}"
        yield fail(f"{file.path} {what}", present, _PUT_BACK, CheckpointMismatch, recorded=then)


def libraries(checkpoint: Checkpoint) -> Iterator[Row]:
    """Programs and libraries that were replaced: CRIU compares the build-id of ELF files."""
    from cria.system.elf import build_id

    for file in checked(checkpoint):
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


def all_same(checkpoint: Checkpoint) -> Iterator[Row]:
    """Every mismatch of files and libraries, or one word that there is none."""
    rows = [row for check in (recorded, opened) for row in check(checkpoint)]
    named = tuple(row.subject.rpartition(" has ")[0] + " " for row in rows)
    rows += [row for row in libraries(checkpoint) if not row.subject.startswith(named)]
    files = {file.path for file in checked(checkpoint)}
    files |= {file.path for file in checkpoint.manifest.fingerprints}
    yield from rows or [ok("files", f"{len(files)} are as they were")]


def checked(checkpoint: Checkpoint) -> tuple[RegularFile, ...]:
    """The files that CRIU opens by their path: not those it remade, nor those cria carries or begins."""
    images = checkpoint.criu_images
    carried = {n for file in checkpoint.manifest.saved_files for n in (file.path, *file.names)}
    files: dict[tuple[str, int], RegularFile] = {}
    for file in images.regular_files():
        remade_or_carried = file.file_id in images.remapped_ids or file.path in carried
        if not remade_or_carried and not file.path.startswith(_NOT_FILES):
            files.setdefault((file.path, file.flags & _FLAGS), file)
    return tuple(files.values())


def _compared(file: RegularFile, *, recorded_too: bool) -> Iterator[Row]:
    """What CRIU would mind; presence and size of files that are `recorded_too` are told there."""
    try:
        present = os.stat(file.path)  # noqa: PTH116
    except (FileNotFoundError, NotADirectoryError):
        # cria restore creates a log again that was rotated away.
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


def whole(checkpoint: Checkpoint) -> Iterator[Row]:
    """Whether every part is there with its size."""
    try:
        Checkpoint.open(checkpoint.path)
    except CheckpointDamaged as error:
        yield of_error(error)
    else:
        parts = len(checkpoint.manifest.parts)
        yield ok("parts", f"all {parts} are there with their sizes")


def machine(checkpoint: Checkpoint) -> Iterator[Row]:
    host = checkpoint.manifest.host
    here = platform.machine()
    if host.machine != here:
        yield fail(
            "the machine is of another kind",
            here,
            f"restore it on {host.machine}",
            CheckpointMismatch,
            recorded=host.machine,
        )
    elif host.kernel != platform.release():
        yield warn("the kernel differs", platform.release(), recorded=host.kernel)
    else:
        yield ok("kernel", f"{host.kernel} {here}, as at the dump")


def cpu(checkpoint: Checkpoint) -> Iterator[Row]:
    """An engine keeps the code it chose for the CPU it started on: a lesser one ends it (SIGILL)."""
    from cria.system.host import model_and_features

    host = checkpoint.manifest.host
    name, features = model_and_features()
    missing = sorted(set(host.cpu_features) - set(features))
    if missing:
        yield fail(
            "this CPU lacks features of the one at the dump",
            f"{name} has no {' '.join(missing)}",
            f"restore it on a CPU like {host.cpu or 'the one of the dump'}",
            CheckpointMismatch,
            recorded=host.cpu or None,
        )
    elif host.cpu_features:
        yield ok("CPU", f"{name}: all {len(host.cpu_features)} features are here")


def criu_version(checkpoint: Checkpoint) -> Iterator[Row]:
    here = program.version(program.find())
    recorded = tuple(map(int, checkpoint.manifest.criu_version.split(".")))
    text = ".".join(map(str, here))
    if here[:2] < recorded[:2]:
        yield fail(
            "CRIU is older than the one of the dump",
            text,
            CriuUnsuitable.default_remedy,
            CriuUnsuitable,
            recorded=checkpoint.manifest.criu_version,
        )
    else:
        yield ok("CRIU", f"{text}; the dump was made with {checkpoint.manifest.criu_version}")


def tcp_close(checkpoint: Checkpoint) -> Iterator[Row]:
    if checkpoint.criu_images.inventory.tcp_close:
        yield fail(
            "connections were closed at the dump",
            "CRIU restores such images only with --tcp-close",
            "take a new checkpoint: cria dump PID -o DIR",
            CheckpointMismatch,
        )


def ports(checkpoint: Checkpoint) -> Iterator[Row]:
    """Whether every port is free as it was, asked without holding any."""
    from cria.network.images import sockets_of
    from cria.network.occupancy import occupants
    from cria.network.planner import plan

    sockets = sockets_of(checkpoint.criu_images.files, inventory=checkpoint.manifest.inventory)
    try:
        kept = plan(sockets, occupants())
    except PortTaken as error:
        yield fail(
            error.message, _why(error), "move the ports: cria restore --ports auto", PortTaken
        )
    except PortPlanRefused as error:
        yield fail(error.message, _why(error), error.remedy, PortPlanRefused)
    else:
        numbers = sorted({move.new.port for move in kept.listeners})
        shown = ", ".join(map(str, numbers[:6])) + (" ..." if len(numbers) > 6 else "")
        yield ok("ports", f"{len(numbers)} to listen on are free: {shown}" if numbers else "none")


def paths(checkpoint: Checkpoint) -> Iterator[Row]:
    """Whether a living process uses a path of the shared memory that would be put back."""
    from cria.checkpoint import saved_files

    try:
        saved_files.check_free(checkpoint.manifest.saved_files, checkpoint.path / SAVED_FILES)
    except PathTaken as error:
        yield of_error(error)
    else:
        yield ok("shared memory", f"{len(checkpoint.manifest.saved_files)} files can be put back")


def room(checkpoint: Checkpoint) -> Iterator[Row]:
    """Memory for the engine, and room on /dev/shm for what is put back there."""
    needed, free = checkpoint.manifest.inventory.checkpoint_bytes(), available_memory()
    if free < needed:
        yield fail(
            "too little memory is free",
            f"{free >> 20} MiB are available",
            "end what uses it: cria ps",
            NoSpace,
            recorded=f"the engine held {needed >> 20} MiB",
        )
    else:
        yield ok("memory", f"{free >> 20} MiB are free, the engine held {needed >> 20} MiB")
    shared, left = _carried_to_shm(checkpoint), shutil.disk_usage("/dev/shm").free
    if left < shared:
        yield fail(
            "/dev/shm has too little room",
            f"{left >> 20} MiB are free",
            "mount -o remount,size=SIZE /dev/shm",
            NoSpace,
            recorded=f"{shared >> 20} MiB",
        )


def _carried_to_shm(checkpoint: Checkpoint) -> int:
    carried = checkpoint.manifest.saved_files
    return sum(file.stored_bytes for file in carried if file.path.startswith("/dev/shm/"))


def _why(error: CriaError) -> str:
    return "; ".join((error.details or error.message).splitlines())
