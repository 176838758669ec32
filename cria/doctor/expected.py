"""How large a checkpoint of an engine becomes, and how long writing it takes here."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Iterator
from pathlib import Path

from cria.doctor.row import Row, ok
from cria.inventory import Inventory

_PROBE = 64 << 20
_CHUNK = 4 << 20
_AT_MOST_SECONDS = 2.0


def size_and_time(inventory: Inventory, place: Path) -> Iterator[Row]:
    """The size is counted; the time is that of writing it at the rate just measured at `place`."""
    held, zero = inventory.checkpoint_bytes(), inventory.zero_bytes()
    zeros = f", about {_gib(zero)} of it zeros" if zero is not None else ""
    yield ok("expected size", f"{_gib(held)} in {len(inventory.processes)} processes{zeros}")
    rate = write_rate(place)
    yield ok(
        "expected time",
        f"about {held / rate:.1f} s to write it: {place} takes {_gib(int(rate))} in a second just now",
    )


def write_rate(place: Path) -> float:
    """Bytes per second that the file system of `place` takes, as CRIU would write them here.

    Writes at most 64 MiB for at most two seconds to a file without a name. Raises OSError.
    """
    flags = os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC
    file = os.open(place, flags, 0o600)
    try:
        with mmap.mmap(-1, _CHUNK) as chunk:
            chunk[:] = os.urandom(4096) * (_CHUNK // 4096)
            return _rate(file, chunk)
    finally:
        os.close(file)


def _rate(file: int, chunk: mmap.mmap) -> float:
    begin = time.monotonic()
    written = 0
    while written < _PROBE and time.monotonic() - begin < _AT_MOST_SECONDS:
        written += os.write(file, chunk)
    return written / (time.monotonic() - begin)


def _gib(count: int) -> str:
    return f"{count / (1 << 30):.2f} GiB" if count >= 1 << 30 else f"{count >> 20} MiB"
