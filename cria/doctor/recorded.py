"""Compare the host a checkpoint was made on with this one: machine, CPU, kernel, CRIU, room, ports."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Iterator
from pathlib import Path

from cria.checkpoint import Checkpoint
from cria.doctor.row import Row, fail, of_error, ok, warn
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


def whole(checkpoint: Checkpoint, _criu: Path) -> Iterator[Row]:
    """Whether every part is there with its size."""
    try:
        Checkpoint.open(checkpoint.path)
    except CheckpointDamaged as error:
        yield of_error(error)
    else:
        parts = len(checkpoint.manifest.parts)
        yield ok("parts", f"all {parts} are there with their sizes")


def machine(checkpoint: Checkpoint, _criu: Path) -> Iterator[Row]:
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


def cpu(checkpoint: Checkpoint, _criu: Path) -> Iterator[Row]:
    """An engine keeps the code it chose for the CPU it started on: a lesser one ends it (SIGILL)."""
    from cria.process.cpu import model_and_features

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


def criu_version(checkpoint: Checkpoint, criu: Path) -> Iterator[Row]:
    from cria.criu import binary

    here = binary.version(criu)
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


def tcp_close(checkpoint: Checkpoint, criu: Path) -> Iterator[Row]:
    from cria.images.facts import inventory

    if inventory(checkpoint.images, criu).tcp_close:
        yield fail(
            "connections were closed at the dump",
            "CRIU restores such images only with --tcp-close",
            "take a new checkpoint: cria dump PID -o DIR",
            CheckpointMismatch,
        )


def ports(checkpoint: Checkpoint, criu: Path) -> Iterator[Row]:
    """Whether every port is free as it was, asked without holding any."""
    from cria.ports import occupants, plan, sockets_of

    sockets = sockets_of(checkpoint.images, criu, inventory=checkpoint.manifest.inventory)
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


def paths(checkpoint: Checkpoint, _criu: Path) -> Iterator[Row]:
    """Whether a living process uses a path of the shared memory that would be put back."""
    from cria.storage import carry, layout

    try:
        carry.check_free(checkpoint.manifest.carried, checkpoint.path / layout.CARRIED)
    except PathTaken as error:
        yield of_error(error)
    else:
        yield ok("shared memory", f"{len(checkpoint.manifest.carried)} files can be put back")


def room(checkpoint: Checkpoint, _criu: Path) -> Iterator[Row]:
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


def available_memory() -> int:
    """Bytes that processes can still take, swapping nothing out."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(x.split()[1]) << 10 for x in lines if x.startswith("MemAvailable"))


def _carried_to_shm(checkpoint: Checkpoint) -> int:
    carried = checkpoint.manifest.carried
    return sum(file.stored_bytes for file in carried if file.path.startswith("/dev/shm/"))


def _why(error: CriaError) -> str:
    return "; ".join((error.details or error.message).splitlines())
