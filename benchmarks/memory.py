"""The memory that engines take: what they share is counted once, however many share it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from cria.system.procfs import PROC, tree


def pss_bytes(roots: Iterable[int], proc: Path = PROC) -> int:
    """The proportional set size of some process trees together (proc(5), smaps_rollup)."""
    return sum(_pss(process.pid, proc) for root in roots for process in tree(root, proc))


def _pss(pid: int, proc: Path) -> int:
    try:
        lines = (proc / str(pid) / "smaps_rollup").read_text().splitlines()
    except OSError:  # it has ended
        return 0
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))
