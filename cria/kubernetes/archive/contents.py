"""Where a runtime's own words in an archive go on naming a port or an address that has moved.

None of it is read when the container is restored: its processes have their arguments and environment
in memory, and the pod brings a specification of its own. It is for people to know.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

import msgspec

from cria.criu.images.directory import CriuImages
from cria.criu.images.files import RegularFile
from cria.kubernetes.archive.metadata import SPEC
from cria.kubernetes.archive.reader import Archive, damaged
from cria.kubernetes.node import criu_shared_memory

MAX_MENTIONS = 50


class Mention(msgspec.Struct, frozen=True, kw_only=True):
    """`says` is the port or address; `where` the way to it in the JSON of `file`."""

    file: str
    where: str
    says: str

    def __str__(self) -> str:
        return f"{self.file}: {self.where} still names {self.says}"


def find_mentions(
    texts: Mapping[str, bytes], ports: Iterable[int], addresses: Iterable[str] = ()
) -> tuple[Mention, ...]:
    """Where `texts` name any of `ports` and `addresses`, at most LONGEST_LIST of them."""
    wanted = [*map(str, sorted(ports)), *sorted(addresses)]
    if not wanted:
        return ()
    # A number within a longer one, an address or a version is another thing.
    pattern = re.compile(rf"(?<![\w.])(?:{'|'.join(map(re.escape, wanted))})(?![\w.])")
    found: list[Mention] = []
    for file, text in texts.items():
        for where, value in _leaves(_decoded(text)):
            for says in sorted(set(pattern.findall(value))):
                found.append(Mention(file=file, where=where, says=says))
                if len(found) == MAX_MENTIONS:
                    return tuple(found)
    return tuple(found)


def _decoded(text: bytes) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return None  # what has to be readable was read before


def _leaves(whole: Any) -> Iterator[tuple[str, str]]:
    """Every text in `whole`, and every number that stands under a key that speaks of ports."""
    left: list[tuple[str, Any]] = [("", whole)]
    while left:
        where, value = left.pop()
        match value:
            case dict():
                below = [(f"{where}.{key}" if where else key, each) for key, each in value.items()]
                left.extend(reversed(below))
            case list():
                below = [(f"{where}[{index}]", each) for index, each in enumerate(value)]
                left.extend(reversed(below))
            case str():
                name, equals, rest = value.partition("=")
                variable = where.startswith("process.env[") and bool(equals)
                yield (f"process.env {name}", rest) if variable else (where, value)
            case int() if "port" in where.rpartition(".")[2].lower():
                yield where, str(value)


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


class _VolumesSpec(msgspec.Struct, frozen=True, kw_only=True):
    mounts: tuple[_Mount, ...] = ()


def needed_files(archive: Archive, images: CriuImages) -> tuple[NeededFile, ...]:
    """Return the files that the pod's volumes must hold, by path. Raises CheckpointDamaged."""
    volumes = _volumes(archive)
    wanted = {
        NeededFile(path=file.path, size_bytes=file.size_bytes, linked=_is_linked(file))
        for file in images.regular_files()
        # A file without a path at the dump is in the images, or CRIU has given it another name.
        if file.file_id not in images.remapped_ids and _is_below(file.path, volumes)
        if _is_linked(file) or (stat.S_ISREG(file.mode) and not file.flags & os.O_APPEND)
    }
    return tuple(sorted(wanted))


def _is_linked(found: RegularFile) -> bool:
    return not found.mode and not found.size_bytes and "link_remap." in found.path


def _volumes(archive: Archive) -> list[str]:
    try:
        spec = msgspec.json.decode(archive.texts[SPEC], type=_VolumesSpec)
    except msgspec.DecodeError as error:
        raise damaged(archive.path, f"{SPEC} is not as it should be: {error}") from error
    return [
        mount.destination
        for mount in spec.mounts
        if mount.type == "bind" and "ro" not in mount.options
        if mount.destination not in _NOT_VOLUMES
        and not (archive.shared_memory and mount.destination == criu_shared_memory.PLACE)
    ]


def _is_below(path: str, volumes: Iterable[str]) -> bool:
    return any(PurePosixPath(volume) in PurePosixPath(path).parents for volume in volumes)
