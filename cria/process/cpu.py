"""What the CPU can do: programs choose their code by it once, when they start."""

from __future__ import annotations

from pathlib import Path

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
