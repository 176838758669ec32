"""Find in a checkpoint archive what a remap leaves to people: old ports that are still named, and files on volumes."""

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


# Mentions: a restore reads none of them. Its processes have their arguments and environment in memory, and its pod
# brings a specification of its own.


class Mention(msgspec.Struct, frozen=True, kw_only=True):
    """A port or address (`says`) that is named at the path `where` in the JSON of `file`."""

    file: str
    where: str
    says: str

    def __str__(self) -> str:
        return f"{self.file}: {self.where} still names {self.says}"


def find_mentions(
    texts: Mapping[str, bytes], ports: Iterable[int], addresses: Iterable[str] = ()
) -> tuple[Mention, ...]:
    """Return where JSON texts, by file, name any of `ports` and `addresses`, at most MAX_MENTIONS places."""
    names = [*map(str, sorted(ports)), *sorted(addresses)]
    if not names:
        return ()
    # A number inside a longer number, an address or a version is no port.
    pattern = re.compile(rf"(?<![\w.])(?:{'|'.join(map(re.escape, names))})(?![\w.])")
    mentions: list[Mention] = []
    for file, text in texts.items():
        for where, value in _leaves(_decode(text)):
            for name in sorted(set(pattern.findall(value))):
                mentions.append(Mention(file=file, where=where, says=name))
                if len(mentions) == MAX_MENTIONS:
                    return tuple(mentions)
    return tuple(mentions)


def _decode(text: bytes) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return None  # the reader has refused an archive whose metadata it needs and cannot read


def _leaves(document: Any) -> Iterator[tuple[str, str]]:
    """Yield the path and value of each string in `document`, and of each number whose key speaks of ports.

    The value of an environment variable may be a secret, so that its path ends with the variable's name.
    """
    stack: list[tuple[str, Any]] = [("", document)]
    while stack:
        where, value = stack.pop()
        match value:
            case dict():
                items = [(f"{where}.{key}" if where else key, item) for key, item in value.items()]
                stack.extend(reversed(items))
            case list():
                items = [(f"{where}[{index}]", item) for index, item in enumerate(value)]
                stack.extend(reversed(items))
            case str():
                name, equals, rest = value.partition("=")
                is_variable = where.startswith("process.env[") and bool(equals)
                yield (f"process.env {name}", rest) if is_variable else (where, value)
            case int() if "port" in where.rpartition(".")[2].lower():
                yield where, str(value)


# Files on volumes ------------------------------------------------------------------------------

# The kubelet makes these for each pod.
_NOT_VOLUMES = ("/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/dev/termination-log")


class NeededFile(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """A file that a restore opens, by its path in the container.

    A file is `linked` if it had no name and CRIU has linked it as link_remap.N. Its size is not known, and CRIU
    removes the link when the container runs on.
    """

    path: str
    size_bytes: int
    linked: bool = False


class _Mount(msgspec.Struct, frozen=True, kw_only=True):
    destination: str
    type: str = ""
    options: tuple[str, ...] = ()


class _SpecMounts(msgspec.Struct, frozen=True, kw_only=True):
    mounts: tuple[_Mount, ...] = ()


def needed_files(archive: Archive, images: CriuImages) -> tuple[NeededFile, ...]:
    """Return the files that the pod's volumes must hold, by path. Raises CheckpointDamaged."""
    volumes = _volumes(archive)
    files = {
        NeededFile(path=file.path, size_bytes=file.size_bytes, linked=_is_linked(file))
        for file in images.regular_files()
        # A file that had no path at the dump is in the images, or CRIU has linked it under another.
        if file.file_id not in images.remapped_ids and _is_below(file.path, volumes)
        if _is_linked(file) or (stat.S_ISREG(file.mode) and not file.flags & os.O_APPEND)
    }
    return tuple(sorted(files))


def _is_linked(file: RegularFile) -> bool:
    return not file.mode and not file.size_bytes and "link_remap." in file.path


def _volumes(archive: Archive) -> list[str]:
    try:
        spec = msgspec.json.decode(archive.texts[SPEC], type=_SpecMounts)
    except msgspec.DecodeError as error:
        raise damaged(archive.path, f"{SPEC} is not as it should be: {error}") from error
    return [
        mount.destination
        for mount in spec.mounts
        if mount.type == "bind" and "ro" not in mount.options
        if mount.destination not in _NOT_VOLUMES
        and not (archive.has_shared_memory and mount.destination == criu_shared_memory.SHM)
    ]


def _is_below(path: str, directories: Iterable[str]) -> bool:
    return any(PurePosixPath(directory) in PurePosixPath(path).parents for directory in directories)
