"""Let time pass, or run backwards, for an engine that is restored from a checkpoint."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import msgspec

from cria.criu import program
from cria.criu.images import framing
from cria.criu.messages import load
from cria.model.manifest import MANIFEST, read, write
from cria.system import digests

TIMENS = 0x43114433  # criu/include/magic.h

# Loaded by every Python process that finds it on its path before another of that name.
WALL_CLOCK = """
import os, time
def shifted(real=time.time, path=os.environ.get("CRIA_TEST_CLOCK", "")):
    try:
        return real() + os.stat(path).st_mtime
    except OSError:
        return real()
time.time = shifted
"""


def preload_a_wall_clock(path: Path, clock: Path) -> None:
    """Python programs with `path` on their PYTHONPATH, and CRIA_TEST_CLOCK=`clock`, tell the time of `clock`."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "sitecustomize.py").write_text(WALL_CLOCK)
    set_wall_clock(clock, 0)


def set_wall_clock(clock: Path, seconds: float) -> None:
    """From now on the wall clock is so many seconds ahead: they are the time of modification of a file."""
    clock.touch()
    os.utime(clock, (seconds, seconds))


def with_monotonic_moved(checkpoint: Path, seconds: int, to: Path) -> Path:
    """A copy of a checkpoint whose engine finds the monotonic clocks moved by so many seconds.

    CRIU gives it a time namespace in which these clocks go on from where they stood. So they are made
    to have stood elsewhere, which is what an engine would see on a kernel without such namespaces.
    """
    shutil.copytree(checkpoint, to, copy_function=os.link)
    path = next((to / "images").glob("timens-*.img"))
    image = framing.read(path, TIMENS)
    clocks = load("timens", program.find()).timens_entry.FromString(image.entries[0])
    for clock in (clocks.monotonic, clocks.boottime):
        clock.tv_sec = max(clock.tv_sec + seconds, 0)
    framing.write(path, framing.Image(header=image.header, entries=(clocks.SerializeToString(),)))
    name = str(path.relative_to(to))
    (changed,) = digests.parts(to, [name])
    manifest = read(to / MANIFEST)
    parts = tuple(changed if part.path == name else part for part in manifest.parts)
    (to / MANIFEST).unlink()
    write(msgspec.structs.replace(manifest, parts=parts), to / MANIFEST)
    return to
