"""What the CPU can do, for programs choose their code by it once, when they start; and the host around it."""

from __future__ import annotations

import platform
from pathlib import Path

from cria.manifest import Host
from cria.process.tree import PROC


def model_and_features(proc: Path = PROC) -> tuple[str, tuple[str, ...]]:
    """Return the name of the first CPU and its feature flags, sorted.

    Only the first block is read: the file costs a millisecond for each CPU of a large host.
    """
    with Path(f"{proc}/cpuinfo").open(errors="replace") as file:
        block = file.read(8192).partition("\n\n")[0]
    facts = dict(line.split(":", 1) for line in block.splitlines() if ":" in line)
    known = {name.strip(): value.strip() for name, value in facts.items()}
    flags = known.get("flags") or known.get("Features") or ""
    return known.get("model name", ""), tuple(sorted(flags.split()))


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
