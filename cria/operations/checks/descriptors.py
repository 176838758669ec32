"""Checks of an engine's open files: kinds that CRIU does not know, devices, terminals, far mounts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from cria.gpu import devices as cuda_devices
from cria.model.inventory import Descriptor, Inventory
from cria.operations.checks.rows import Row, fail, named, warn
from cria.system.procfs import PROC

# anon_inode files that CRIU dumps although cria has no kind of its own for them.
_KNOWN = ("[fanotify]", "bpf-map")
# Character devices that CRIU reopens by name: memory (null, zero, random), and terminals.
# Source: criu/files.c dump_chrdev; Documentation/admin-guide/devices.txt.
_MEMORY = 1
_TERMINALS = {4, 5, *range(128, 144)}
_PTMX = os.makedev(5, 2)
_INFINIBAND = 231
_ON_MOUNTS = {"file", "directory", "device", "fifo"}


def unsupported(inventory: Inventory) -> Iterator[Row]:
    """io_uring rings, userfaultfd, perf counters and other files without a name."""
    for descriptor in inventory.descriptors:
        what = _without_support(descriptor)
        if what:
            yield fail(
                f"{named(inventory, descriptor.pid)} holds {what}",
                f"fd {descriptor.fd}; CRIU cannot dump it",
                "start the engine with: cria run -- CMD..."
                if descriptor.kind == "io_uring"
                else "start the engine without what opens it",
                pid=descriptor.pid,
                fd=descriptor.fd,
            )


def _without_support(descriptor: Descriptor) -> str | None:
    if descriptor.kind == "io_uring":
        return "an io_uring ring"
    name = descriptor.target.partition("anon_inode:")[2]
    if descriptor.kind == "other" and name and not name.startswith(_KNOWN):
        return f"a file of kind {name.strip('[]')}"
    return None


def devices(inventory: Inventory) -> Iterator[Row]:
    """Devices whose state lives in a driver. NVIDIA's hands it over beforehand: cria.operations.checks.gpu."""
    gpus = set(cuda_devices.gpu_descriptors(inventory.descriptors))
    for descriptor in inventory.descriptors:
        if descriptor.kind != "device" or descriptor in gpus or _reopened(descriptor):
            continue
        subject = f"{named(inventory, descriptor.pid)} has the device {descriptor.target} open"
        value, remedy = _driver(descriptor)
        yield fail(
            subject, f"fd {descriptor.fd}; {value}", remedy, pid=descriptor.pid, fd=descriptor.fd
        )


def _reopened(descriptor: Descriptor) -> bool:
    # A disk has numbers too: only its name tells it from a character device here.
    major = os.major(descriptor.device)
    return major in {_MEMORY, *_TERMINALS} and not descriptor.target.startswith("/dev/ram")


def _driver(descriptor: Descriptor) -> tuple[str, str]:
    if os.major(descriptor.device) == _INFINIBAND or "/infiniband/" in descriptor.target:
        return (
            "RDMA queues cannot be checkpointed",
            "start the engine without RDMA: NCCL_IB_DISABLE=1 UCX_TLS=tcp,shm",
        )
    return "CRIU cannot dump this kind of device", "start the engine without what opens it"


def terminals(inventory: Inventory, proc: Path = PROC) -> Iterator[Row]:
    """A terminal whose other side is outside: CRIU dumps it, and then cannot restore it."""
    own = {
        _terminal_index(descriptor, proc)
        for descriptor in inventory.descriptors
        if descriptor.kind == "device" and descriptor.device == _PTMX
    }
    held: dict[tuple[int, str], Descriptor] = {}
    for descriptor in inventory.descriptors:
        major, minor = os.major(descriptor.device), os.minor(descriptor.device)
        inside = descriptor.device == _PTMX or (136 <= major < 144 and minor in own)
        if descriptor.kind == "device" and major in _TERMINALS and not inside:
            held.setdefault((descriptor.pid, descriptor.target), descriptor)
    for descriptor in held.values():
        yield fail(
            f"{named(inventory, descriptor.pid)} has a terminal open",
            f"fd {descriptor.fd}: {descriptor.target}; a restored engine has no such terminal",
            "start the engine without one: cria run -- CMD...",
            pid=descriptor.pid,
            fd=descriptor.fd,
        )


def foreign_mounts(inventory: Inventory, proc: Path = PROC) -> Iterator[Row]:
    """Files on a mount that the process cannot see: inherited from, or sent by, another namespace."""
    mounts: dict[int, frozenset[int]] = {}
    common = inventory.root.namespaces.get("mnt")
    for process in inventory.processes:
        if process.namespaces.get("mnt") != common:
            continue  # that is a finding of its own
        mounts[process.pid] = _mounts(process.pid, proc)
        if _exe_mount(process.pid, proc) not in {None, *mounts[process.pid]}:
            yield _foreign(inventory, process.pid, None, "its program")
    for descriptor in inventory.descriptors:
        if descriptor.kind in _ON_MOUNTS and descriptor.pid in mounts:
            mount = _mount_of(proc / str(descriptor.pid) / "fdinfo" / str(descriptor.fd))
            if mount not in {None, *mounts[descriptor.pid]}:
                yield _foreign(inventory, descriptor.pid, descriptor.fd, descriptor.target)


def _foreign(inventory: Inventory, pid: int, fd: int | None, what: str) -> Row:
    return fail(
        f"{named(inventory, pid)} uses a file of another mount namespace",
        f"fd {fd}: {what}" if fd is not None else what,
        "start the engine inside the namespace, with its files opened there",
        pid=pid,
        fd=fd,
    )


def large_deleted_files(inventory: Inventory, proc: Path = PROC) -> Iterator[Row]:
    """Deleted files go into the images, and CRIU refuses one that takes more than the limit."""
    from cria.criu.options import GHOST_LIMIT

    seen: set[tuple[int, int]] = set()
    for descriptor in inventory.descriptors:
        if (
            not descriptor.deleted
            or descriptor.links
            or (descriptor.device, descriptor.inode) in seen
        ):
            continue
        seen.add((descriptor.device, descriptor.inode))
        try:
            size = os.stat(f"{proc}/{descriptor.pid}/fd/{descriptor.fd}").st_blocks * 512  # noqa: PTH116
        except FileNotFoundError:
            continue
        if size > GHOST_LIMIT:
            yield fail(
                f"{named(inventory, descriptor.pid)} holds a large deleted file",
                f"fd {descriptor.fd}: {descriptor.path} takes {size >> 20} MiB; the limit is"
                f" {GHOST_LIMIT >> 20} MiB",
                "start the engine with this file kept, or on a smaller scale",
                pid=descriptor.pid,
                fd=descriptor.fd,
            )


def checked_files(inventory: Inventory) -> Iterator[Row]:
    """Files open for writing that must not grow before a restore: CRIU wants the size it knew."""
    for descriptor in inventory.descriptors:
        writes = descriptor.flags is not None and descriptor.flags & os.O_ACCMODE != os.O_RDONLY
        if (
            descriptor.kind != "file"
            or descriptor.deleted
            or not writes
            or may_grow(descriptor.flags or 0)
        ):
            continue
        if not descriptor.target.startswith("/dev/shm/"):
            yield warn(
                f"{named(inventory, descriptor.pid)} writes to a file that must keep its size",
                f"fd {descriptor.fd}: {descriptor.target}; it is not open for appending only",
                "open logs for appending, as cria run does",
                pid=descriptor.pid,
                fd=descriptor.fd,
            )


def may_grow(flags: int) -> bool:
    """Whether CRIU leaves the size of a file open with these flags unchecked (should_check_size)."""
    return bool(flags & os.O_APPEND and flags & os.O_WRONLY)


def _mounts(pid: int, proc: Path) -> frozenset[int]:
    try:
        lines = (proc / str(pid) / "mountinfo").read_text(errors="replace").splitlines()
    except OSError:  # a process whose first thread has ended has none (EINVAL)
        return frozenset()
    return frozenset(int(line.split(maxsplit=1)[0]) for line in lines)


def _exe_mount(pid: int, proc: Path) -> int | None:
    try:
        opened = os.open(f"{proc}/{pid}/exe", os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return _mount_of(Path(f"/proc/self/fdinfo/{opened}"))
    finally:
        os.close(opened)


def _mount_of(info: Path) -> int | None:
    return _field(info, "mnt_id:")


def _terminal_index(descriptor: Descriptor, proc: Path) -> int | None:
    return _field(proc / str(descriptor.pid) / "fdinfo" / str(descriptor.fd), "tty-index:")


def _field(info: Path, name: str) -> int | None:
    try:
        lines = info.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith(name)), None)
