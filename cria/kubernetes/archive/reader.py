"""Read a container runtime's checkpoint archive: its origin, sizes, and CRIU images but memory. Refuse harmful ones.

Source of the format: metadata.go in checkpointctl/lib, which containerd, CRI-O and podman share. The archive is read
a header at a time (cria.checkpoint.tar_reader), so that what it announces takes no memory.
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
from cria.system import compression
from cria.system.compression import Compression

IMAGES, FILES_IMAGE = "checkpoint/", "checkpoint/files.img"
METADATA = (CONFIG, SPEC, "status.dump", "network.status")
MAX_MEMBER_BYTES = 64 << 20  # of a member that is kept in memory
MAX_KEPT_BYTES = 256 << 20  # of all that is kept
MAX_NAME_CHARS = 4096

# What describes the sockets and the processes that hold them.
_KEPT_IMAGES = re.compile(
    rf"{IMAGES}(?:files|pstree|inventory|remap-fpath|(?:core|ids|fdinfo)-\d+)\.img"
)
_PAGES = re.compile(rf"{IMAGES}pages-\d+\.img")
_OTHER_KINDS = {
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
    """What was read of an archive.

    `images` are the small images by name, `texts` the runtime's metadata by file, `files_member` says where files.img
    is. With `has_shared_memory` cria's action script has added the engine's files of /dev/shm.
    """

    path: Path
    compression: Compression
    origin: Origin
    sizes: Sizes
    images: Mapping[str, bytes]
    texts: Mapping[str, bytes]
    files_member: Member
    has_shared_memory: bool

    def criu_images(self, program: Path | None = None) -> CriuImages:
        """Return the images that were kept, decoded with the pycriu of `program`."""
        return CriuImages(self.path, program, contents=self.images)


@contextmanager
def open_file(path: Path) -> Iterator[IO[bytes]]:
    """Open an archive, unbuffered. Raises CheckpointMissing, or NotACheckpoint for what is not a regular file."""
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
        raise _not_an_archive(path, "it is not a file")
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        yield file


def read_archive(path: str | os.PathLike[str]) -> Archive:
    """Open the archive at `path` and read it. Raises what `open_file` and `read` raise."""
    with open_file(Path(path)) as file:
        return read(file, Path(path))


def read(file: IO[bytes], path: Path) -> Archive:
    """Read an archive from its beginning to its end; errors call it `path`.

    Raises NotACheckpoint for another kind of file, and CheckpointDamaged for an archive that is not complete or could
    do harm: with names that lead out of it or occur twice, links, devices, or headers of any size.
    """
    try:
        with damage_explained(path):
            return _ArchiveScan(path).read(file)
    except OSError as error:
        raise damaged(path, f"it cannot be read: {error.strerror or error}") from error


@contextmanager
def damage_explained(path: Path) -> Iterator[None]:
    """Raise CheckpointDamaged for a broken tar or compressed stream. Errors of the disk pass."""
    errors: tuple[type[Exception], ...] = (Malformed, *compression.damage())
    try:
        yield
    except errors as error:
        raise damaged(path, str(error)) from error


def damaged(path: Path, why: str) -> CheckpointDamaged:
    """Return the error for an archive that cannot be used."""
    return CheckpointDamaged(
        f"{path} is damaged, or was made to do harm",
        details=why,
        remedy="checkpoint the container again: cria kubernetes checkpoint NS/POD/CONTAINER",
    )


class _ArchiveScan:
    """Collects what one pass over an archive meets."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._names: set[str] = set()
        self._kept: dict[str, bytes] = {}
        self._sizes = {"pages": 0, "images": 0, "rootfs": 0}
        self._files_member: Member | None = None
        self._bytes_left = MAX_KEPT_BYTES

    def read(self, file: IO[bytes]) -> Archive:
        kind = _compression(file, self._path)
        tar = TarReader(compression.reader(file, kind), seekable=kind == "none")
        try:
            for member in tar.members():
                self._add(member, tar)
        except (NoTar, EOFError) as error:
            if self._names or (kind != "none" and isinstance(error, EOFError)):
                raise  # it begins as an archive does
            raise _not_an_archive(self._path, str(error)) from error
        return Archive(
            path=self._path,
            compression=kind,
            files_member=self._required_files_member(),
            origin=_origin(self._path, self._kept),
            sizes=Sizes(
                archive=os.fstat(file.fileno()).st_size, unpacked=tar.offset, **self._sizes
            ),
            images={
                name.removeprefix(IMAGES): content
                for name, content in self._kept.items()
                if name.startswith(IMAGES)
            },
            texts={name: self._kept[name] for name in METADATA if name in self._kept},
            has_shared_memory=IMAGES + criu_shared_memory.IMAGE_NAME in self._names,
        )

    def _add(self, member: Member, tar: TarReader) -> None:
        name = _normal_name(member)
        if name in self._names:
            raise Malformed(f"{name!r} is there twice")
        self._names.add(name)
        self._reserve(len(name), "the list of its members")
        if member.kind == "directory":
            return
        self._count(name, member.size_bytes)
        if name in METADATA or _KEPT_IMAGES.fullmatch(name):
            self._reserve(member.size_bytes, name)
            self._kept[name] = tar.content(member)
        if name == FILES_IMAGE:
            self._files_member = member

    def _count(self, name: str, size: int) -> None:
        if name == "rootfs-diff.tar":
            self._sizes["rootfs"] += size
        elif name.startswith(IMAGES):
            self._sizes["pages" if _PAGES.fullmatch(name) else "images"] += size

    def _reserve(self, size: int, name: str) -> None:
        self._bytes_left -= size
        if size > MAX_MEMBER_BYTES or self._bytes_left < 0:
            raise Malformed(f"{name} has {size} bytes, which is too much")

    def _required_files_member(self) -> Member:
        """Return where files.img is, in an archive that has all that every archive has."""
        required = (CONFIG, SPEC, FILES_IMAGE, f"{IMAGES}pstree.img", f"{IMAGES}inventory.img")
        missing = [name for name in required if name not in self._kept]
        if len(missing) == len(required):
            kinds = (kind for name, kind in _OTHER_KINDS.items() if name in self._names)
            names = ", ".join(sorted(self._names - {""})[:5])
            raise _not_an_archive(self._path, next(kinds, f"it holds {names or 'nothing'}"))
        if missing or self._files_member is None:
            raise Malformed(f"it lacks {', '.join(missing)}")
        return self._files_member


def _normal_name(member: Member) -> str:
    """Return the path of a member within the archive, in its shortest form; empty for its root."""
    parts = member.name.split("/")
    if member.name.startswith("/") or ".." in parts or "\0" in member.name:
        raise Malformed(f"{member.name[:80]!r} leads out of it")
    name = "/".join(part for part in parts if part not in ("", "."))
    if len(name) > MAX_NAME_CHARS or (not name and member.kind == "file"):
        raise Malformed(f"{member.name[:80]!r} is no name")
    return name


def _compression(file: IO[bytes], path: Path) -> Compression:
    file.seek(0)
    head = file.read(8)
    file.seek(0)
    try:
        return compression.compression_of(head)
    except ValueError as error:
        raise _not_an_archive(path, f"{error}; unpack that first") from error


def _origin(path: Path, texts: Mapping[str, bytes]) -> Origin:
    try:
        return read_origin(texts)
    except (msgspec.DecodeError, RecursionError) as error:
        raise damaged(path, f"{CONFIG} or {SPEC} is not as it should be: {error}") from error


def _not_an_archive(path: Path, why: str) -> NotACheckpoint:
    return NotACheckpoint(f"{path} is no checkpoint archive of a container", details=why)
