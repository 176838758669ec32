"""Read a tar a header at a time: what it announces is never taken into memory unless it is asked for.

TarFile does not do: it reads an extended header of any announced size.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from typing import IO, Literal

import msgspec

BLOCK = tarfile.BLOCKSIZE
PIECE = 1 << 20
LARGEST_EXTENSION = 1 << 20
MOST_EXTENSIONS = 4
MOST_MEMBERS = 200_000

_KINDS: dict[bytes, Literal["file", "directory"]] = {
    tarfile.REGTYPE: "file",
    tarfile.AREGTYPE: "file",
    tarfile.DIRTYPE: "directory",
}
_OTHERS = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a FIFO",
}
_LONG_NAME, _LONG_LINK = tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK
_PAX, _PAX_FOR_ALL = tarfile.XHDTYPE, tarfile.XGLTYPE


class Malformed(ValueError):
    """The tar breaks its own rules, or has what is not read here; the text says what."""


class NoTar(Malformed):
    """Where a header should stand is something else."""


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """A plain file or directory of a tar; offsets are bytes of the tar, uncompressed.

    `header` is where its last header block stands, `content` what follows that; `block` is that header.
    `extended_size` where the size stands in an extended header before it.
    """

    name: str
    kind: Literal["file", "directory"]
    size_bytes: int
    header: int
    block: bytes
    extended_size: bool = False

    @property
    def content(self) -> int:
        return self.header + BLOCK

    @property
    def end(self) -> int:
        return self.content + self.size_bytes + -self.size_bytes % BLOCK


class TarReader:
    """A tar that is read from its beginning; `seekable` where skipping costs nothing."""

    def __init__(self, stream: IO[bytes], *, seekable: bool) -> None:
        self.offset = 0
        self._stream = stream
        self._size = stream.seek(0, io.SEEK_END) if seekable else None
        if seekable:
            stream.seek(0)

    def members(self) -> Iterator[Member]:
        """Its plain files and directories; between two of them `content` may be read.

        Raises Malformed, also for links, devices and sparse files, and EOFError where it is cut off.
        """
        for _ in range(MOST_MEMBERS):
            member = self._next()
            if member is None:
                self._see_the_end()
                return
            yield member
            self.skip_to(member.end)
        raise Malformed(f"it has more than {MOST_MEMBERS} members")

    def content(self, member: Member) -> bytes:
        """All of the member that was just yielded; the caller has looked at its size."""
        return self.exactly(member.size_bytes)

    def exactly(self, count: int) -> bytes:
        pieces, left = [], count
        while left:
            piece = self._stream.read(min(left, PIECE))
            if not piece:
                raise EOFError("it ends too early")
            pieces.append(piece)
            left -= len(piece)
        self.offset += count
        return b"".join(pieces)

    def skip_to(self, offset: int) -> None:
        if self._size is not None:
            if offset > self._size:
                raise EOFError("it ends too early")
            self.offset = self._stream.seek(offset)
        while self.offset < offset:
            self.exactly(min(PIECE, offset - self.offset))

    def _next(self) -> Member | None:
        extension: dict[str, str] = {}
        for _ in range(MOST_EXTENSIONS + 1):
            at, block = self.offset, self.exactly(BLOCK)
            if not block.strip(b"\0"):
                if extension:
                    raise Malformed("it ends after an extended header")
                return None
            header = _parsed(block)
            if header.type not in (_LONG_NAME, _LONG_LINK, _PAX, _PAX_FOR_ALL):
                return _member(header, at, block, extension)
            extension |= self._extension(header)
        raise Malformed(f"{header.name!r} has more than {MOST_EXTENSIONS} extended headers")

    def _extension(self, header: tarfile.TarInfo) -> dict[str, str]:
        """What an extended header says of the next member, or of all of them."""
        if not 0 <= header.size <= LARGEST_EXTENSION:
            raise Malformed(f"an extended header announces {header.size} bytes")
        data = self.exactly(header.size)
        self.exactly(-header.size % BLOCK)
        if header.type == _LONG_NAME:
            return {"path": _text(data.split(b"\0", 1)[0])}
        if header.type == _LONG_LINK:
            return {}
        records = dict(_records(data))
        if any(key.startswith("GNU.sparse.") for key in records):
            raise Malformed("it holds a sparse file")
        if header.type == _PAX:
            return records
        if records.keys() & {"path", "size"}:
            raise Malformed("it gives all its members one name or size")
        return {}

    def _see_the_end(self) -> None:
        while piece := self._stream.read(PIECE):
            self.offset += len(piece)
            if piece.strip(b"\0"):
                raise Malformed("something follows its end")


def resized(member: Member, size: int) -> bytes:
    """The header block of `member` when it has `size` bytes instead; all else as it was."""
    if member.extended_size or not 0 <= size < 8**11:
        raise Malformed(f"{member.name} has its size in an extended header")
    block = bytearray(member.block)
    block[124:136] = b"%011o\0" % size
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def _member(header: tarfile.TarInfo, at: int, block: bytes, extension: dict[str, str]) -> Member:
    name = extension.get("path", header.name)
    kind = _KINDS.get(header.type)
    if kind is None:
        raise Malformed(f"{name!r} is {_OTHERS.get(header.type, 'no plain file')}")
    size = _number(extension["size"]) if "size" in extension else header.size
    if size < 0 or (kind == "directory" and size):
        raise Malformed(f"{name!r} has a size that cannot be")
    return Member(
        name=name,
        kind=kind,
        size_bytes=size,
        header=at,
        block=block,
        extended_size="size" in extension,
    )


def _parsed(block: bytes) -> tarfile.TarInfo:
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "strict")
    except (tarfile.HeaderError, UnicodeDecodeError) as error:
        raise NoTar(f"it is no tar: {error}") from error


def _records(data: bytes) -> Iterator[tuple[str, str]]:
    """The `LENGTH KEY=VALUE` lines of a pax header. Source: pax(1), POSIX.1-2001."""
    at = 0
    while at < len(data):
        length, space, _ = data[at : at + 20].partition(b" ")
        end = at + _number(_text(length))
        key, equals, value = data[at + len(length) + 1 : end - 1].partition(b"=")
        if not (space and equals) or end > len(data) or data[end - 1 : end] != b"\n":
            raise Malformed("an extended header is broken")
        if key in (b"path", b"size") or key.startswith(b"GNU.sparse."):
            yield _text(key), _text(value)
        at = end


def _number(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 20):
        raise Malformed(f"{text[:20]!r} is no number")
    return int(text)


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise Malformed(f"a name is not UTF-8: {data[:40]!r}") from error
