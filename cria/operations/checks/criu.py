"""Checks of CRIU: the program, whether it fits this kernel, and what it can do here."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from cria.criu import program as binary
from cria.errors import CriuUnsuitable
from cria.operations.checks.host import kernel_version
from cria.operations.checks.rows import Row, fail, ok, skip, warn
from cria.system.host import missing_capabilities

# Kernels changed under CRIU; from (kernel, the CRIU it needs, why). Source: CRIU's release notes.
KERNEL_NEEDS: tuple[tuple[tuple[int, int], tuple[int, ...], str], ...] = (
    ((7, 0), (4, 2, 1), "the size of rseq changed"),
    ((6, 16), (4, 2), "SO_PASSCRED is for unix and netlink sockets only"),
    ((6, 13), (4, 1), "the vvar mapping was split"),
)
# Where `criu check --all` finds something missing that cria does not use.
_NOT_USED = ("Dirty tracking is OFF", "statmount syscall")


def program(_place: Path) -> Iterator[Row]:
    """The program and its version, against what this kernel needs."""
    criu = binary.find()
    version = binary.version(criu)
    text = ".".join(map(str, version))
    needed, why = needed_for(kernel_version())
    if version < needed:
        yield fail(
            "CRIU",
            f"{text} at {criu} is too old for kernel {platform.release()}: {why}",
            f"install CRIU {'.'.join(map(str, needed))} or newer, or name it:"
            " export CRIA_CRIU=/path/to/criu",
            CriuUnsuitable,
        )
    else:
        yield ok("CRIU", f"{text} at {criu}")


def needed_for(kernel: tuple[int, int]) -> tuple[tuple[int, ...], str]:
    """The oldest CRIU for a kernel, and why."""
    for since, criu, why in KERNEL_NEEDS:
        if kernel >= since:
            return criu, why
    return binary.OLDEST_SUPPORTED, "older ones were never tried with cria"


def kernel_features(_place: Path) -> Iterator[Row]:
    """What `criu check` finds: what it needs, and what it would like to have."""
    criu = binary.find()
    if missing_capabilities():
        yield skip("criu check", "needs root")
        return
    status, lines = _run(criu, "check")
    if status:
        value = "; ".join(lines[:3]) or f"criu check ended with status {status}"
        yield fail("criu check", value, f"{criu} check -v4", CriuUnsuitable)
        return
    _, warnings = _run(criu, "check", "--all")
    missing = [
        w for w in warnings if not w.startswith(("Looks good", "which, dep", "dump or rest"))
    ]
    serious = [w for w in missing if not any(part in w for part in _NOT_USED)]
    for line in serious:
        yield warn("criu check --all", line)
    unused = len(missing) - len(serious)
    yield ok(
        "criu check", "passes" + (f"; {unused} missing features are not used" if unused else "")
    )


def bindings(_place: Path) -> Iterator[Row]:
    """CRIU's Python package, with the protobuf that is installed here."""
    from importlib.metadata import version

    from cria.criu.client import Client
    from cria.criu.messages import find_pycriu, load

    criu = binary.find()
    Client(criu)
    load("fdinfo", criu)
    yield ok("pycriu", f"{find_pycriu(criu)} loads with protobuf {version('protobuf')}")


def network_lock(_place: Path) -> Iterator[Row]:
    """CRIU needs a lock for connections that go on outside: dumps with --leave-running only."""
    criu = binary.find()
    iptables = shutil.which("iptables")
    if iptables:
        yield ok("network lock", f"iptables at {iptables}")
    elif not _run(criu, "check", "--feature", "network_lock_nftables")[0]:
        yield ok("network lock", "nftables, inside CRIU")
    else:
        yield warn(
            "network lock",
            "neither iptables nor nftables: clients lose their connections when an engine is dumped"
            " and left running",
            "apt-get install iptables",
        )


def direct_writes(_place: Path) -> Iterator[Row]:
    """CRIU 4.3 can write images past the page cache; whether a disk takes that, cria does not try."""
    from cria.criu.client import Client

    if not Client(binary.find()).has_option("image_io_mode"):
        yield ok("direct writes", "no: they came with CRIU 4.3")
    else:
        yield ok("direct writes", "yes, with --direct-io, where the disk takes them")


def configuration(_place: Path) -> Iterator[Row]:
    """Files whose options CRIU adds to those that cria chooses."""
    named = os.environ.get("CRIU_CONFIG_FILE")
    places = [Path("/etc/criu/default.conf"), Path(os.path.expanduser("~/.criu/default.conf"))]  # noqa: PTH111
    for file in [*places, *([Path(named)] if named else [])]:
        if file.exists() and file.read_text().strip():
            yield warn(
                "CRIU's configuration", f"{file} adds options to cria's", f"mv {file} {file}.off"
            )


CRIU_CHECKS = (
    program,
    kernel_features,
    bindings,
    network_lock,
    direct_writes,
    configuration,
)


def _run(criu: Path, *arguments: str) -> tuple[int, list[str]]:
    """The exit status of CRIU and its lines, without the source positions."""
    try:
        done = subprocess.run(
            [criu, *arguments], capture_output=True, text=True, timeout=30, check=False, cwd="/"
        )
    except subprocess.TimeoutExpired:
        return 1, [f"criu {' '.join(arguments)} took longer than 30 seconds"]
    lines = (done.stdout + done.stderr).splitlines()
    return done.returncode, [_plain(line) for line in lines if line.strip()]


def _plain(line: str) -> str:
    """A line of CRIU's without its level and source position, `Warn  (criu/cr-check.c:824): `."""
    head, colon, tail = line.partition("): ")
    return tail.strip() if colon and head.startswith(("Error", "Warn")) else line.strip()
