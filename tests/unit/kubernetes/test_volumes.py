"""An archive names the files that a restore opens on the pod's volumes, for it does not hold them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from runtime_archives import complete, image, members, stored, tar

from cria.criu import program
from cria.criu.images import framing
from cria.criu.messages import load
from cria.kubernetes.archive.contents import NeededFile, needed_files
from cria.kubernetes.archive.reader import read_archive

REGULAR, DIRECTORY = 0o100600, 0o040700
MOUNTS = [
    {"destination": "/dev/shm", "type": "bind", "options": ["rbind", "rw"]},
    {"destination": "/models", "type": "bind", "options": ["rbind", "ro"]},
    {"destination": "/proc", "type": "proc"},
    {"destination": "/etc/hosts", "type": "bind"},
]


@pytest.fixture
def archived(fdinfo: ModuleType, tmp_path: Path) -> Callable[..., tuple[NeededFile, ...]]:
    def of(
        *opened: tuple[str, int, int], remaps: bytes | None = None, saved: bool = False
    ) -> tuple[NeededFile, ...]:
        files = members(fdinfo, *(regular(fdinfo, n, *file) for n, file in enumerate(opened, 1)))
        spec = json.loads(files["spec.dump"]) | {"mounts": MOUNTS}
        files["spec.dump"] = json.dumps(spec).encode()
        if remaps is not None:
            files["checkpoint/remap-fpath.img"] = remaps
        if saved:
            files["checkpoint/cria-shared-memory.img"] = b"of the action script"
        archive = read_archive(stored(tmp_path / "archive", tar(files)))
        return needed_files(archive, archive.criu_images(program.find()))

    return of


def regular(fdinfo: ModuleType, number: int, path: str, mode: int, flags: int) -> Any:
    message = fdinfo.file_entry(type=1, id=number)
    message.reg.SetInParent()
    message.reg.id, message.reg.name, message.reg.mode = number, path, mode
    message.reg.flags, message.reg.size = flags, 10 if mode else 0
    return complete(message)


def test_files_in_shared_memory_are_needed_and_others_are_not(
    archived: Callable[..., tuple[NeededFile, ...]],
) -> None:
    files = archived(
        ("/dev/shm/psm_1", REGULAR, os.O_RDWR),
        ("/dev/shm/psm_1", REGULAR, os.O_RDONLY),
        ("/dev/shm", DIRECTORY, 0),
        ("/dev/shm/log", REGULAR, os.O_WRONLY | os.O_APPEND),
        ("/models/weights", REGULAR, 0),
        ("/etc/hosts", REGULAR, 0),
        ("/app/server.py", REGULAR, 0),
        ("/dev/shmem", REGULAR, 0),
    )

    assert files == (NeededFile(path="/dev/shm/psm_1", size_bytes=10),)


def test_a_file_without_a_name_is_needed_under_the_link_of_criu(
    archived: Callable[..., tuple[NeededFile, ...]],
) -> None:
    entry = load("remap_file_path", program.find()).remap_file_path_entry
    remaps = [
        entry(orig_id=1, remap_id=2, remap_type=0),
        entry(orig_id=3, remap_id=9, remap_type=1),
    ]

    files = archived(
        ("/dev/shm/sem.a", REGULAR, 0),
        ("/dev/shm/link_remap.2", 0, 0),
        ("/dev/shm/sem.in-the-images", REGULAR, 0),
        remaps=image(framing.REMAP_FPATH, *remaps),
    )

    assert files == (NeededFile(path="/dev/shm/link_remap.2", size_bytes=0, linked=True),)


def test_shared_memory_that_the_action_script_has_saved_is_not_needed(
    archived: Callable[..., tuple[NeededFile, ...]],
) -> None:
    assert archived(("/dev/shm/psm_1", REGULAR, os.O_RDWR), saved=True) == ()
