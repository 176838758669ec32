"""Files that a restore finds again on the pod's volumes or not at all: an archive does not hold them.

That is all below /dev/shm, which is a volume of the pod's sandbox, unless cria's action script has kept
it, and what lies on other mounts that can be written to. CRIU refuses a file that is missing or has
another size.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import msgspec

from cria.images import facts, files, framing
from cria.images.files import RegularFile
from cria.kubernetes import criu_shared_memory
from cria.kubernetes.archive import Archive
from cria.kubernetes.origin import SPEC
from cria.kubernetes.plan import decoding

# The sandbox makes these anew for each pod, or they are the kernel's.
_NOT_VOLUMES = ("/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/dev/termination-log")


class NeededFile(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """A file as the container sees it. `linked` where CRIU had given a file without a name this one.

    Such a name is gone once the container runs on; its size is not known.
    """

    path: str
    size_bytes: int
    linked: bool = False


class _Mount(msgspec.Struct, frozen=True, kw_only=True):
    destination: str
    type: str = ""
    options: tuple[str, ...] = ()


class _Spec(msgspec.Struct, frozen=True, kw_only=True):
    mounts: tuple[_Mount, ...] = ()


def needed(archive: Archive, criu: Path | None = None) -> tuple[NeededFile, ...]:
    """The files that the pod's volumes must hold, by path. Raises CheckpointDamaged."""
    volumes, remapped = _volumes(archive), _found_elsewhere(archive, criu)
    with decoding(archive):
        found = files.regular_files(archive.files_image(), criu)
    wanted = {
        NeededFile(path=each.path, size_bytes=each.size_bytes, linked=_is_linked(each))
        for each in found
        if each.file_id not in remapped and _is_below(each.path, volumes)
        if _is_linked(each) or (stat.S_ISREG(each.mode) and not each.flags & os.O_APPEND)
    }
    return tuple(sorted(wanted))


def _found_elsewhere(archive: Archive, criu: Path | None) -> frozenset[int]:
    """The files that had no name, by ID: they are in the images, or have got another name."""
    data = archive.images.get("remap-fpath.img")
    if data is None:
        return frozenset()
    image = framing.parse(data, f"remap-fpath.img in {archive.path}", framing.REMAP_FPATH)
    with decoding(archive):
        return frozenset(remap.file_id for remap in facts.remaps_of(image, criu))


def _is_linked(found: RegularFile) -> bool:
    return not found.mode and not found.size_bytes and "link_remap." in found.path


def _volumes(archive: Archive) -> list[str]:
    with decoding(archive):
        spec = msgspec.json.decode(archive.texts[SPEC], type=_Spec)
    return [
        mount.destination
        for mount in spec.mounts
        if mount.type == "bind" and "ro" not in mount.options
        if mount.destination not in _NOT_VOLUMES
        and not (archive.shared_memory and mount.destination == criu_shared_memory.PLACE)
    ]


def _is_below(path: str, volumes: Iterable[str]) -> bool:
    return any(PurePosixPath(volume) in PurePosixPath(path).parents for volume in volumes)
