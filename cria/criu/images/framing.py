"""Read and write CRIU image files as a header and raw entries, without knowing what the entries mean."""

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

# Source: criu/include/magic.h. Since image version 1.1 a file opens with one of these two words and then
# the word of its kind; inventory.img alone has only the latter.
COMMON, SERVICE = 0x54564319, 0x55105940
INVENTORY, PSTREE, FILES, STATS = 0x58313116, 0x50273030, 0x56303138, 0x57093306
REMAP_FPATH, TCP_STREAM = 0x59133954, 0x51465506
CORE, IDS, FDINFO = 0x55053847, 0x54432030, 0x56213732
PAGEMAP, MM = 0x56084025, 0x57492820

_WORD = Struct("<I")


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """An image file in memory: its magic words as they stood, and the payload of every entry."""

    header: bytes
    entries: tuple[bytes, ...]


def read(path: Path, kind: int) -> Image:
    """The whole of `path`, which must be of `kind`; CheckpointMissing or CheckpointDamaged otherwise."""
    with _opened(path) as file:
        return parse(file.read(), path, kind)


def parse(data: bytes, name: object, kind: int) -> Image:
    """The same of the content `data`; errors call it `name`."""
    header = _header(BytesIO(data), name, kind)
    return Image(header=header, entries=tuple(_split(data, name, len(header))))


def iterate(path: Path, kind: int) -> Iterator[bytes]:
    """The entries of `path` one after the other; for files with data behind an entry take one only."""
    with _opened(path) as file:
        _header(file, path, kind)
        while word := file.read(_WORD.size):
            yield _payload(file, word, path)


def first(path: Path, kind: int) -> bytes:
    """The first entry of `path`, for images that hold just one, or one and then raw data."""
    for entry in iterate(path, kind):
        return entry
    raise _damaged(path, "it holds no entry")


def write(path: Path, image: Image, *, durable: bool = True) -> None:
    """Put `image` at `path` in one step: a reader sees the old file or the new one, never a part.

    What is needed for one restore only need not be `durable`: it does not wait for the disk.
    """
    with NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        temporary = Path(file.name)
        try:
            file.write(join(image.header, image.entries))
            file.flush()
            if durable:
                os.fsync(file.fileno())
            # CRIU may read with other rights than those of the umask-proof temporary file.
            os.fchmod(file.fileno(), 0o644)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def header(kind: int) -> bytes:
    """How an image file of `kind` begins."""
    return _WORD.pack(COMMON) + _WORD.pack(kind)


def join(header: bytes, entries: Iterable[bytes]) -> bytes:
    """The bytes of an image file."""
    parts = [header]
    for entry in entries:
        parts.append(_WORD.pack(len(entry)))
        parts.append(entry)
    return b"".join(parts)


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except FileNotFoundError as error:
        raise CheckpointMissing(f"{path} does not exist") from error


def _header(file: BinaryIO, name: object, kind: int) -> bytes:
    header = file.read(_WORD.size)
    if header in (_WORD.pack(COMMON), _WORD.pack(SERVICE)):
        header += file.read(_WORD.size)
    if header[-_WORD.size :] != _WORD.pack(kind):
        raise _damaged(name, f"it begins with {header.hex() or 'nothing'}, not with {kind:#x}")
    return header


def _split(data: bytes, name: object, begin: int) -> Iterator[bytes]:
    at, end = begin, len(data)
    while at < end:
        body = at + _WORD.size
        after = body + (_WORD.unpack_from(data, at)[0] if body <= end else end)
        if after > end:
            raise _damaged(name, f"the entry at byte {at} is cut off")
        yield data[body:after]
        at = after


def _payload(file: BinaryIO, word: bytes, path: Path) -> bytes:
    size = _WORD.unpack(word)[0] if len(word) == _WORD.size else None
    payload = file.read(size) if size is not None else b""
    if size is None or len(payload) != size:
        raise _damaged(path, f"the entry that ends at byte {file.tell()} is cut off")
    return payload


def _damaged(name: object, why: str) -> CheckpointDamaged:
    return CheckpointDamaged(f"{name} is not a whole CRIU image of its kind", details=why)
