"""A container runtime's checkpoint archive: whose it is, its CRIU images but memory, and what is refused.

Source of the format: metadata.go in checkpointctl/lib, which containerd, CRI-O and podman share.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import msgspec

from cria.checkpoint.tar_reader import Malformed, Member, NoTar, TarReader
from cria.criu.images.directory import CriuImages
from cria.errors import CheckpointDamaged, CheckpointMissing, NotACheckpoint
from cria.kubernetes.archive.metadata import CONFIG, SPEC, Origin, read_origin
from cria.kubernetes.node import criu_shared_memory
from cria.system import compression as compressed
from cria.system.compression import Compression

IMAGES, FILES = "checkpoint/", "checkpoint/files.img"
TEXTS = (CONFIG, SPEC, "status.dump", "network.status")
LARGEST_KEPT = 64 << 20
LARGEST_KEPT_IN_ALL = 256 << 20
LONGEST_NAME = 4096

# What is needed to know the sockets and whose they are; memory and queues stay where they are.
_KEPT = re.compile(rf"{IMAGES}(?:files|pstree|inventory|remap-fpath|(?:core|ids|fdinfo)-\d+)\.img")
_PAGES = re.compile(rf"{IMAGES}pages-\d+\.img")
_OTHERS = {
    "oci-layout": "it is a container image",
    "pod.options": "it is the archive of a whole pod; take those of its containers",
    "pod.dump": "it is the archive of a whole pod; take those of its containers",
    "manifest.json": "it is a container image, or was made by cria pack",
}


class Sizes(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes: of the file, of the tar in it, of memory pages, of the other images, of changed files."""

    archive: int
    unpacked: int
    pages: int
    images: int
    rootfs: int


class Archive(msgspec.Struct, frozen=True, kw_only=True):
    """What was read of an archive. `images` are the small ones by name, without their directory.

    `texts` are what the runtime wrote down, as it stands; `files` is where files.img lies. With
    `shared_memory` cria's action script has put the engine's files of /dev/shm beside the images.
    """

    path: Path
    compression: Compression
    origin: Origin
    sizes: Sizes
    images: Mapping[str, bytes]
    texts: Mapping[str, bytes]
    files: Member
    shared_memory: bool

    def criu_images(self, program: Path | None = None) -> CriuImages:
        """Return the images that were kept, decoded with the pycriu of `program`."""
        return CriuImages(self.path, program, contents=self.images)


@contextmanager
def open_file(path: Path) -> Iterator[IO[bytes]]:
    """The file at `path`. Raises CheckpointMissing, or NotACheckpoint for what is no file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise CheckpointMissing(
            f"{path} cannot be opened",
            details=error.strerror,
            remedy="name the archive that the kubelet or the container runtime wrote",
        ) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _other(path, "it is not a file")
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        yield file


def read_archive(path: str | os.PathLike[str]) -> Archive:
    """What is in the archive at `path`. Raises as `opened` and `read` do."""
    with open_file(Path(path)) as file:
        return read(file, Path(path))


def read(file: IO[bytes], path: Path) -> Archive:
    """What is in the archive, from its beginning to its end; errors call it `path`.

    Raises NotACheckpoint for something else, CheckpointDamaged for what is broken or out to harm:
    names that lead elsewhere or stand twice, links and devices, headers of any size.
    """
    with reading(path):
        return _Collected(path).read(file)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """What goes wrong in here while `path` is read becomes one error."""
    try:
        with explain_damage(path):
            yield
    except OSError as error:
        raise damaged(path, f"it cannot be read: {error.strerror or error}") from error


@contextmanager
def explain_damage(path: Path) -> Iterator[None]:
    """The same, but for errors of the disk: where something else is written meanwhile."""
    broken: tuple[type[Exception], ...] = (Malformed, *compressed.damage())
    try:
        yield
    except broken as error:
        raise damaged(path, str(error)) from error


def damaged(path: Path, why: str) -> CheckpointDamaged:
    return CheckpointDamaged(
        f"{path} is damaged, or was made to do harm",
        details=why,
        remedy="checkpoint the container again: cria kubernetes checkpoint NS/POD/CONTAINER",
    )


class _Collected:
    """What one pass over an archive gathers."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._names: set[str] = set()
        self._kept: dict[str, bytes] = {}
        self._sizes = {"pages": 0, "images": 0, "rootfs": 0}
        self._files: Member | None = None
        self._room = LARGEST_KEPT_IN_ALL

    def read(self, file: IO[bytes]) -> Archive:
        compression = _compression(file, self._path)
        tar = TarReader(compressed.reader(file, compression), seekable=compression == "none")
        try:
            for member in tar.members():
                self._take(member, tar)
        except (NoTar, EOFError) as error:
            if self._names or (compression != "none" and isinstance(error, EOFError)):
                raise  # it has begun well
            raise _other(self._path, str(error)) from error
        self._check()
        assert self._files is not None
        archive_bytes = os.fstat(file.fileno()).st_size
        return Archive(
            path=self._path,
            compression=compression,
            origin=_origin(self._path, self._kept),
            sizes=Sizes(archive=archive_bytes, unpacked=tar.offset, **self._sizes),
            images={
                name.removeprefix(IMAGES): data
                for name, data in self._kept.items()
                if name.startswith(IMAGES)
            },
            texts={name: self._kept[name] for name in TEXTS if name in self._kept},
            files=self._files,
            shared_memory=IMAGES + criu_shared_memory.NAME in self._names,
        )

    def _take(self, member: Member, tar: TarReader) -> None:
        name = _name(member)
        if name in self._names:
            raise Malformed(f"{name!r} is there twice")
        self._names.add(name)
        self._keep_room_for(len(name), "the list of its members")
        if member.kind == "directory":
            return
        self._count(name, member.size_bytes)
        if name in TEXTS or _KEPT.fullmatch(name):
            self._keep_room_for(member.size_bytes, name)
            self._kept[name] = tar.content(member)
        if name == FILES:
            self._files = member

    def _count(self, name: str, size: int) -> None:
        if name == "rootfs-diff.tar":
            self._sizes["rootfs"] += size
        elif name.startswith(IMAGES):
            self._sizes["pages" if _PAGES.fullmatch(name) else "images"] += size

    def _keep_room_for(self, size: int, name: str) -> None:
        self._room -= size
        if size > LARGEST_KEPT or self._room < 0:
            raise Malformed(f"{name} has {size} bytes, which is too much")

    def _check(self) -> None:
        needed = (CONFIG, SPEC, FILES, f"{IMAGES}pstree.img", f"{IMAGES}inventory.img")
        missing = [name for name in needed if name not in self._kept]
        if not missing:
            return
        if len(missing) == len(needed):
            known = (what for name, what in _OTHERS.items() if name in self._names)
            shown = ", ".join(sorted(self._names - {""})[:5])
            raise _other(self._path, next(known, f"it holds {shown or 'nothing'}"))
        raise Malformed(f"it lacks {', '.join(missing)}")


def _name(member: Member) -> str:
    """The path of a member within the archive, in its shortest form; empty for its root."""
    parts = member.name.split("/")
    if member.name.startswith("/") or ".." in parts or "\0" in member.name:
        raise Malformed(f"{member.name[:80]!r} leads out of it")
    name = "/".join(part for part in parts if part not in ("", "."))
    if len(name) > LONGEST_NAME or (not name and member.kind == "file"):
        raise Malformed(f"{member.name[:80]!r} is no name")
    return name


def _compression(file: IO[bytes], path: Path) -> Compression:
    file.seek(0)
    head = file.read(8)
    file.seek(0)
    try:
        return compressed.compression_of(head)
    except ValueError as error:
        raise _other(path, f"{error}; unpack that first") from error


def _origin(path: Path, texts: Mapping[str, bytes]) -> Origin:
    try:
        return read_origin(texts)
    except (msgspec.DecodeError, RecursionError) as error:
        raise damaged(path, f"{CONFIG} or {SPEC} is not as it should be: {error}") from error


def _other(path: Path, why: str) -> NotACheckpoint:
    return NotACheckpoint(f"{path} is no checkpoint archive of a container", details=why)
