"""One archive of a checkpoint: a tar of plain files, the manifest first, compressed with zstd in one stream.

`tar --zstd -xf` opens it as well. It is written and read a header at a time and not with TarFile: a
hostile archive may announce an extended header of any size, and TarFile reads it into memory.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from cria.checkpoint import layout
from cria.checkpoint.tar_reader import BLOCK, PIECE, NoTar, parse_header, read_exactly
from cria.errors import CheckpointDamaged
from cria.events import OnBytes
from cria.model import manifest
from cria.model.manifest import IMAGES, MANIFEST, MEMORY, SAVED_FILES, Manifest, Part
from cria.system import compression, digests

GRAIN = 64 << 10  # zeros of this length become a hole
LEVEL = (
    1  # 3 takes twice as long for a tenth less: 2.4 GB to 0.29 GB in 4.8 s, to 0.26 GB in 10.5 s
)
LARGEST_MANIFEST = 64 << 20
_ZEROS = bytes(PIECE)
_NAME = re.compile(rf"({IMAGES}|{SAVED_FILES}|{MEMORY})/[^/\0]+|[^/\0]+")


def write(checkpoint: Path, declared: Manifest, file: IO[bytes], moved: OnBytes) -> None:
    """Write the archive of `checkpoint` to `file`, every processor compressing.

    Raises CheckpointDamaged for a part that is not as its digest says, NoSpace, NotWritable.
    """
    with compression.writer(_Writing(file), "zstd", LEVEL) as stream:
        text = (checkpoint / MANIFEST).read_bytes()
        stream.write(_header(MANIFEST, len(text)) + text + _padding(len(text)))
        for part in declared.parts:
            _write_part(checkpoint, part, stream, moved)
        stream.write(bytes(2 * BLOCK))


def _write_part(checkpoint: Path, part: Part, stream: IO[bytes], moved: OnBytes) -> None:
    digest, left = digests.hasher(), part.size_bytes
    stream.write(_header(part.path, part.size_bytes))
    try:
        with (checkpoint / part.path).open("rb", buffering=0) as file:
            while left and (piece := file.read(min(PIECE, left))):
                digest.update(piece)
                stream.write(piece)
                left -= len(piece)
                moved(len(piece))
    except _WriteFailed:
        raise
    except OSError as error:
        raise CheckpointDamaged(f"{part.path} cannot be read", details=error.strerror) from error
    if left or (part.digest and digest.hexdigest() != part.digest):
        raise CheckpointDamaged(
            f"{checkpoint / part.path} was changed since the dump",
            remedy=f"see what else was: cria verify {checkpoint}",
        )
    stream.write(_padding(part.size_bytes))


def read_manifest(stream: IO[bytes], into: Path) -> Manifest:
    """The first file of an archive, written to the directory `into`. Raises CheckpointDamaged."""
    header = _next_header(stream)
    if header is None or header.name != MANIFEST or header.size > LARGEST_MANIFEST:
        raise refused("it does not begin with the manifest of a checkpoint")
    text = b"".join(_content(stream, header))
    place = into / MANIFEST
    with _new(place) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    declared = manifest.read(place)
    names = [part.path for part in declared.parts]
    for name in names:
        if not _NAME.fullmatch(name) or ".." in name.split("/") or name in layout.NOT_PARTS:
            raise refused(f"it has a part that leads elsewhere: {name!r}")
    if len(set(names)) != len(names) or any(part.size_bytes < 0 for part in declared.parts):
        raise refused("its manifest names a part twice, or with a size that cannot be")
    return declared


def read_parts(stream: IO[bytes], declared: Manifest, into: Path, moved: OnBytes) -> None:
    """The parts that the manifest declares, each once and as large as declared, nothing else.

    Raises CheckpointDamaged, also for a part whose digest differs.
    """
    expected = {part.path: part for part in declared.parts}
    while (header := _next_header(stream)) is not None:
        part = expected.pop(header.name, None)
        if part is None:
            raise refused(f"{header.name!r} is there twice, or its manifest does not name it")
        if header.size != part.size_bytes:
            raise refused(f"{part.path} has {header.size} bytes, its manifest {part.size_bytes}")
        digest = _unpack(_content(stream, header), into / part.path, part.size_bytes, moved)
        if part.digest and digest != part.digest:
            raise refused(f"{part.path} was changed: its digest differs")
    if stream.read(PIECE).strip(b"\0") or stream.read(1):
        raise refused("something follows its end")
    if expected:
        raise refused(f"it lacks {len(expected)} parts: {', '.join(sorted(expected)[:5])}")


def decompressed(file: IO[bytes]) -> IO[bytes]:
    """The tar inside; reading it raises what `damage` lists when the stream is broken."""
    return compression.reader(file, "zstd")


def damage() -> tuple[type[Exception], ...]:
    """What a broken stream raises while it is read."""
    return compression.damage()


def _unpack(pieces: Iterator[bytes], path: Path, size: int, moved: OnBytes) -> str:
    """Zeros become holes: rings of shared memory are little else, and so are many pages."""
    digest, offset = digests.hasher(), 0
    with _new(path) as file:
        for piece in pieces:
            digest.update(piece)
            if piece != _ZEROS[: len(piece)]:
                for begin in range(0, len(piece), GRAIN):
                    grain = piece[begin : begin + GRAIN]
                    if grain != _ZEROS[: len(grain)]:
                        file.seek(offset + begin)
                        file.write(grain)
            offset += len(piece)
            moved(len(piece))
        file.truncate(size)
        os.fsync(file.fileno())
    return str(digest.hexdigest())


def _content(stream: IO[bytes], header: tarfile.TarInfo) -> Iterator[bytes]:
    left = header.size
    while left:
        piece = _exactly(stream, min(PIECE, left))
        left -= len(piece)
        yield piece
    _exactly(stream, len(_padding(header.size)))


def _next_header(stream: IO[bytes]) -> tarfile.TarInfo | None:
    block = _exactly(stream, BLOCK)
    if block == _ZEROS[:BLOCK]:
        return None
    try:
        header = parse_header(block)
    except NoTar as error:
        raise refused(str(error)) from error
    if header.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or header.size < 0:
        raise refused(f"{header.name!r} is not a plain file")
    return header


def _exactly(stream: IO[bytes], count: int) -> bytes:
    try:
        return read_exactly(stream, count)
    except EOFError as error:
        raise refused(str(error)) from error


def _header(name: str, size: int) -> bytes:
    header = tarfile.TarInfo(name)
    header.size, header.mode = size, 0o600
    return header.tobuf(tarfile.GNU_FORMAT, "utf-8", "strict")


def _padding(size: int) -> bytes:
    return bytes(-size % BLOCK)


def _new(path: Path) -> IO[bytes]:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags, 0o600), "wb", buffering=0)


def refused(what: str) -> CheckpointDamaged:
    """The error for an archive that is not unpacked, with the reason."""
    return CheckpointDamaged(
        "the archive is damaged, or was not made by cria pack",
        details=what,
        remedy="pack the checkpoint again: cria pack CHECKPOINT FILE",
    )


class _WriteFailed(OSError):
    """The archive, and not the checkpoint, is what fails."""


class _Writing:
    """Tells errors of writing from errors of reading."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def write(self, data: bytes) -> int:
        view = memoryview(data)
        done = 0
        try:
            while done < len(view):
                done += self._file.write(view[done:])
        except OSError as error:
            raise _WriteFailed(*error.args) from error
        return done
