"""Checks of this host: what its kernel, its limits and its container allow."""

from __future__ import annotations

import os
import platform
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from cria.errors import CriuUnsuitable, NoSpace, PrivilegeMissing
from cria.operations.checks.rows import Row, fail, ok, skip, warn
from cria.system.host import CAP_SYS_RESOURCE, available_memory, missing_capabilities
from cria.system.procfs import PROC

# CRIU chooses PIDs with clone3(2) and set_tid, which came with Linux 5.5.
_OLDEST_KERNEL = (5, 5)
_LITTLE_ROOM = 4 << 30
_IFF_UP = 1


def kernel(_place: Path) -> Iterator[Row]:
    release = platform.release()
    if kernel_version() < _OLDEST_KERNEL:
        yield fail(
            "kernel", f"{release} cannot choose PIDs", "use Linux 5.10 or newer", CriuUnsuitable
        )
    else:
        yield ok("kernel", f"{release} {platform.machine()}")


def kernel_version() -> tuple[int, int]:
    match = re.match(r"(\d+)\.(\d+)", platform.release())
    return (int(match[1]), int(match[2])) if match else (0, 0)


def capabilities(_place: Path) -> Iterator[Row]:
    missing = missing_capabilities()
    if missing:
        remedy = PrivilegeMissing.default_remedy
        yield fail("capabilities", f"{', '.join(missing)} missing", remedy, PrivilegeMissing)
    elif missing_capabilities(CAP_SYS_RESOURCE):
        yield warn(
            "capabilities",
            f"no CAP_SYS_RESOURCE: only engines of uid {os.geteuid()} can be dumped",
            "add it: capsh, --cap-add SYS_RESOURCE, or the pod's securityContext",
        )
    else:
        yield ok("capabilities", "all that CRIU needs")


def yama(_place: Path) -> Iterator[Row]:
    """Yama may forbid ptrace(2), with which CRIU seizes processes."""
    scope = _setting("kernel/yama/ptrace_scope")
    if scope == "3":
        remedy = "boot without kernel.yama.ptrace_scope=3: it cannot be lowered"
        yield fail("ptrace", "Yama forbids it to everybody", remedy, PrivilegeMissing)
    else:
        yield ok("ptrace", f"yama.ptrace_scope is {scope}" if scope else "no Yama in this kernel")


def io_uring(_place: Path) -> Iterator[Row]:
    disabled = _setting("kernel/io_uring_disabled")
    if disabled == "2":
        yield ok("io_uring", "off on this host: no engine can hold a ring")
    else:
        yield ok("io_uring", "on; cria run hides it from the engine, as CRIU cannot dump it")


def cgroup(_place: Path) -> Iterator[Row]:
    unified = Path("/sys/fs/cgroup/cgroup.controllers").exists()
    yield ok("cgroup", "version 2" if unified else "version 1 or none")


def namespaces(_place: Path) -> Iterator[Row]:
    """Clones live in namespaces of their own."""
    missing = [n for n in ("ipc", "mnt", "net", "pid") if not (PROC / "self/ns" / n).exists()]
    if missing:
        yield warn(
            "namespaces", f"this kernel has no {', '.join(missing)}", "no clones on one host"
        )
    else:
        yield ok("namespaces", "pid, mnt, ipc and net")


def clocks(_place: Path) -> Iterator[Row]:
    """CRIU restores a process in a time namespace, so that its timers do not see that it was away."""
    if (PROC / "self/ns/time").exists():
        yield ok("clocks", "a restored engine's monotonic clocks go on from where they stood")
    else:
        yield warn(
            "clocks",
            "this kernel has no time namespaces: after a reboot an engine's timers may wait for long",
            "use a kernel with CONFIG_TIME_NS",
        )


def loopback(_place: Path) -> Iterator[Row]:
    """CRIU does not start where lo is down (kerndat_tcp_repair)."""
    flags = Path("/sys/class/net/lo/flags")
    if flags.exists() and not int(flags.read_text(), 16) & _IFF_UP:
        yield fail(
            "loopback", "lo is down; CRIU does not start", "ip link set lo up", CriuUnsuitable
        )
    else:
        yield ok("loopback", "lo is up")


def lazy(_place: Path) -> Iterator[Row]:
    """Only a restore with --lazy needs it."""
    from cria.memory.lazy import userfaultfd

    obstacle = userfaultfd.find_obstacle()
    if obstacle is not None:
        yield warn("lazy restore", obstacle.why, obstacle.remedy)
    else:
        yield ok("lazy restore", "userfaultfd, with word of changed mappings")


def overcommit(_place: Path) -> Iterator[Row]:
    if _setting("vm/overcommit_memory") == "2":
        yield warn(
            "memory overcommit",
            "off; engines reserve far more than they use, so a restore may be refused memory",
            "sysctl -w vm.overcommit_memory=0",
        )


def disk(place: Path) -> Iterator[Row]:
    yield _room("disk room", shutil.disk_usage(place).free, f"at {place}")


def memory(_place: Path) -> Iterator[Row]:
    yield _room("memory", available_memory(), "available")
    yield _room("shared memory", shutil.disk_usage("/dev/shm").free, "on /dev/shm")


def _room(subject: str, free: int, where: str) -> Row:
    text = f"{free / (1 << 30):.1f} GiB {where}"
    if free < 64 << 20:
        return fail(subject, text, NoSpace.default_remedy, NoSpace)
    return (
        warn(subject, text, "a small engine needs some GiB")
        if free < _LITTLE_ROOM
        else ok(subject, text)
    )


def _setting(name: str) -> str | None:
    try:
        return (PROC / "sys" / name).read_text().strip()
    except OSError:
        return None


HOST_CHECKS = (
    kernel,
    capabilities,
    yama,
    io_uring,
    cgroup,
    namespaces,
    clocks,
    loopback,
    lazy,
    overcommit,
    disk,
    memory,
)


OPTIONS = Path("/etc/criu")


def runtime(_place: Path) -> Iterator[Row]:
    """runc and crun read CRIU's options from a file: that is how a kubelet's checkpoint gets them."""
    names = [name for name in ("runc", "crun") if shutil.which(name)]
    if not names:
        yield skip("container runtime", "neither runc nor crun on PATH")
    for name in names:
        # crun reads runc's file where it has none of its own.
        files = [OPTIONS / f"{n}.conf" for n in dict.fromkeys((name, "runc"))]
        text = next((file.read_text() for file in files if file.exists()), "")
        if "tcp-established" in text:
            yield ok(name, f"{files[0].parent} lets it checkpoint containers with connections")
        else:
            yield warn(
                name,
                "a container with a TCP connection cannot be checkpointed",
                f"mkdir -p /etc/criu && printf 'tcp-established\\nnetwork-lock nftables\\n'"
                f" >> /etc/criu/{name}.conf",
            )


RUNTIME_CHECKS = (runtime,)
