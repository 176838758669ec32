"""A checkpoint that no CRIU has made: a few parts, one of them mostly holes."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from cria.checkpoint import layout
from cria.checkpoint.handle import Checkpoint
from cria.events import Timings
from cria.model import manifest
from cria.model.inventory import Inventory, Process
from cria.model.manifest import (
    IMAGES,
    MANIFEST,
    SAVED_FILES,
    DumpOptions,
    Host,
    Manifest,
    SavedFile,
)
from cria.system import digests

HOLE = 8 << 20


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    place = tmp_path / "checkpoint"
    for directory in (place, place / IMAGES, place / SAVED_FILES):
        directory.mkdir(mode=0o700)
    (place / "images/files.img").write_bytes(b"small")
    (place / "images/pages-1.img").write_bytes(os.urandom(3 << 20))
    with (place / "carried/0000").open("wb") as sparse:
        sparse.truncate(HOLE)
        sparse.seek(HOLE // 2)
        sparse.write(b"in the middle")
    known = described(digests.parts(place, layout.parts(place)))
    manifest.write(known, place / MANIFEST)
    return Checkpoint.open(place)


def described(parts: tuple[manifest.Part, ...]) -> Manifest:
    process = Process(
        pid=1,
        parent=0,
        session=1,
        uid=0,
        started=0.0,
        command=("python",),
        name="python",
        threads=1,
        namespaces={},
    )
    ring = SavedFile(
        path="/dev/shm/psm_1",
        stored_as="0000",
        size_bytes=HOLE,
        stored_bytes=4096,
        mode=0o600,
        uid=0,
        gid=0,
    )
    return Manifest(
        cria_version="0",
        created="2026-01-01T00:00:00+00:00",
        host=Host(name="here", kernel="6", machine="x86_64", boot_id=""),
        criu_version="4.3",
        options=DumpOptions(
            leave_running=False, network_lock="SKIP", image_io_mode=None, shell_job=False
        ),
        inventory=Inventory(taken=0.0, is_engine=False, processes=(process,)),
        api_endpoints=(),
        saved_files=(ring,),
        parts=parts,
        timings=Timings(wall_seconds=0, unaccounted_seconds=0, steps=()),
    )


def encoded(known: Manifest) -> bytes:
    return msgspec.json.encode(known)
