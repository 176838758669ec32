"""What the CPU can do, for programs choose their code by it once, when they start; and the host around it."""

from __future__ import annotations

import platform
from pathlib import Path

from cria.model.manifest import Host
from cria.system.procfs import PROC


def model_and_features(proc: Path = PROC) -> tuple[str, tuple[str, ...]]:
    """Return the name of the first CPU and its feature flags, sorted.

    Only the first block is read: the file costs a millisecond for each CPU of a large host.
    """
    with Path(f"{proc}/cpuinfo").open(errors="replace") as file:
        block = file.read(8192).partition("\n\n")[0]
    facts = dict(line.split(":", 1) for line in block.splitlines() if ":" in line)
    values = {name.strip(): value.strip() for name, value in facts.items()}
    flags = values.get("flags") or values.get("Features") or ""
    return values.get("model name", ""), tuple(sorted(flags.split()))


def this_host(proc: Path = PROC) -> Host:
    """Return what a checkpoint says of the host it was made on."""
    cpu, features = model_and_features(proc)
    return Host(
        name=platform.node(),
        kernel=platform.release(),
        machine=platform.machine(),
        boot_id=Path(f"{proc}/sys/kernel/random/boot_id").read_text().strip(),
        cpu=cpu,
        cpu_features=features,
    )


def available_memory(proc: Path = PROC) -> int:
    """Return the bytes that can be taken without swapping (proc(5), MemAvailable)."""
    return _meminfo("MemAvailable", proc)


def memory_and_swap(proc: Path = PROC) -> int:
    """Return the bytes of memory and swap of this host together (proc(5), MemTotal and SwapTotal)."""
    return _meminfo("MemTotal", proc) + _meminfo("SwapTotal", proc)


def _meminfo(name: str, proc: Path) -> int:
    lines = Path(f"{proc}/meminfo").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1]) * 1024


# Source: include/uapi/linux/capability.h.
CAPABILITIES = {"CAP_SYS_PTRACE": 19, "CAP_SYS_ADMIN": 21, "CAP_NET_ADMIN": 12}
CAP_SYS_RESOURCE = {"CAP_SYS_RESOURCE": 24}


def missing_capabilities(wanted: dict[str, int] = CAPABILITIES) -> list[str]:
    """The capabilities, of those CRIU needs for a dump with connections, that this process lacks."""
    status = Path("/proc/self/status").read_text()
    effective = int(next(x for x in status.splitlines() if x.startswith("CapEff")).split()[1], 16)
    return [name for name, bit in wanted.items() if not effective >> bit & 1]
