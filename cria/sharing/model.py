"""What of an engine's memory its clones share, as a caller is told."""

from __future__ import annotations

import msgspec


class SharedProcess(msgspec.Struct, frozen=True, kw_only=True):
    """What of the memory of one process, by its PID in the checkpoint, is shared, and what is copied."""

    pid: int
    shared_bytes: int
    copied_bytes: int
    why_not: str | None = None


class SharedMemory(msgspec.Struct, frozen=True, kw_only=True):
    """What clones share: `place` is a directory, `made` whether it was made just now."""

    place: str
    made: bool
    shared_bytes: int
    copied_bytes: int
    processes: tuple[SharedProcess, ...]

    @property
    def told(self) -> str:
        """In words: how much is shared, how much copied, and what stands against it where it does."""
        told = f"shared {self.shared_bytes >> 20} MiB, copied {self.copied_bytes >> 20} MiB"
        against = (f"; PID {p.pid} shares none: {p.why_not}" for p in self.processes if p.why_not)
        return "".join((told, *against))
