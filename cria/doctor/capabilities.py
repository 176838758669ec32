"""The rights that CRIU needs; a module of its own, for every restore asks."""

from __future__ import annotations

from pathlib import Path

# Source: include/uapi/linux/capability.h.
CAPABILITIES = {"CAP_SYS_PTRACE": 19, "CAP_SYS_ADMIN": 21, "CAP_NET_ADMIN": 12}
CAP_SYS_RESOURCE = {"CAP_SYS_RESOURCE": 24}


def missing_capabilities(wanted: dict[str, int] = CAPABILITIES) -> list[str]:
    """The capabilities, of those CRIU needs for a dump with connections, that this process lacks."""
    status = Path("/proc/self/status").read_text()
    effective = int(next(x for x in status.splitlines() if x.startswith("CapEff")).split()[1], 16)
    return [name for name, bit in wanted.items() if not effective >> bit & 1]
