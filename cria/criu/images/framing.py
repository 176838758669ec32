"""Read and write CRIU's image files as a header and raw entries, whatever the entries mean."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from io import BytesIO
from pathlib import Path
from struct import Struct
from tempfile import NamedTemporaryFile
from typing import BinaryIO

import msgspec

from cria.errors import CheckpointDamaged, CheckpointMissing

# Source: criu/include/magic.h. Since image version 1.1 a file begins with one of these two words and then
# the word of its kind; inventory.img has only the second (img_check_magic in criu/image.c).
COMMON, SERVICE = 0x54564319, 0x55105940
INVENTORY, PSTREE, FILES = 0x58313116, 0x50273030, 0x56303138
REMAP_FPATH, TCP_STREAM = 0x59133954, 0x51465506
CORE, IDS, FDINFO = 0x55053847, 0x54432030, 0x56213732
PAGEMAP, MM = 0x56084025, 0x57492820

_WORD = Struct("<I")


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """An image file in memory: its magic words as they are in the file, and the payload of every entry."""

    header: bytes
    entries: tuple[bytes, ...]


def read(path: Path, kind: int) -> Image:
    """Read an image of `kind`. Raises CheckpointMissing or CheckpointDamaged."""
    with _open(path) as file:
        return parse(file.read(), path, kind)


def parse(data: bytes, name: object, kind: int) -> Image:
    """Split the content of an image of `kind`; errors call it `name`. Raises CheckpointDamaged."""
    header = _read_header(BytesIO(data), name, kind)
    return Image(header=header, entries=tuple(_split(data, name, len(header))))


def first(path: Path, kind: int) -> bytes:
    """Read the first entry only; raw data may follow it. Raises CheckpointMissing or CheckpointDamaged."""
    with _open(path) as file:
        _read_header(file, path, kind)
        prefix = file.read(_WORD.size)
        size = _WORD.unpack(prefix)[0] if len(prefix) == _WORD.size else 0
        payload = file.read(size)
        if len(prefix) != _WORD.size or len(payload) != size:
            raise damaged(path, f"the entry that ends at byte {file.tell()} is cut off")
        return payload


def write(path: Path, image: Image, *, durable: bool = True) -> None:
    """Replace `path` in one step: a reader sees the old file or the new one, never a part.

    A `durable` image is on the disk when this returns; one for a single restore need not be.
    """
    with NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        temporary = Path(file.name)
        try:
            file.write(join(image.header, image.entries))
            file.flush()
            if durable:
                os.fsync(file.fileno())
            # NamedTemporaryFile makes files of mode 0600, and CRIU may run as another user.
            os.fchmod(file.fileno(), 0o644)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def header(kind: int) -> bytes:
    """Return the first bytes of an image of `kind`; not for inventory.img."""
    return _WORD.pack(COMMON) + _WORD.pack(kind)


def join(header: bytes, entries: Iterable[bytes]) -> bytes:
    """Return the bytes of an image file."""
    parts = [header]
    for entry in entries:
        parts.append(_WORD.pack(len(entry)))
        parts.append(entry)
    return b"".join(parts)


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except FileNotFoundError as error:
        raise CheckpointMissing(f"{path} does not exist") from error


def _read_header(file: BinaryIO, name: object, kind: int) -> bytes:
    header = file.read(_WORD.size)
    if header in (_WORD.pack(COMMON), _WORD.pack(SERVICE)):
        header += file.read(_WORD.size)
    if header[-_WORD.size :] != _WORD.pack(kind):
        raise damaged(name, f"it begins with {header.hex() or 'nothing'}, not with {kind:#x}")
    return header


def _split(data: bytes, name: object, begin: int) -> Iterator[bytes]:
    offset, size = begin, len(data)
    while offset < size:
        start = offset + _WORD.size
        end = start + (_WORD.unpack_from(data, offset)[0] if start <= size else size)
        if end > size:
            raise damaged(name, f"the entry at byte {offset} is cut off")
        yield data[start:end]
        offset = end


def damaged(name: object, why: str) -> CheckpointDamaged:
    """Return the error for an image that is not what it should be."""
    return CheckpointDamaged(f"{name} is not a whole CRIU image of its kind", details=why)
