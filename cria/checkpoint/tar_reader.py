"""Read a tar a header at a time. TarFile reads an extended header of any announced size into memory; this does not."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from typing import IO, Literal

import msgspec

BLOCK = tarfile.BLOCKSIZE
PIECE = 1 << 20
MAX_EXTENSION_BYTES = 1 << 20
MAX_EXTENSIONS = 4
MAX_MEMBERS = 200_000

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
    """The tar is broken, or holds what is not read here; the text says what."""


class NoTar(Malformed):
    """Something else stands where a header should be."""


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """A plain file or directory of a tar. Offsets are in bytes of the uncompressed tar.

    `header` is the offset of its last header, `block` that header, and `content` the offset of what follows. With
    `has_extended_size` an extended header before it gives the size.
    """

    name: str
    kind: Literal["file", "directory"]
    size_bytes: int
    header: int
    block: bytes
    has_extended_size: bool = False

    @property
    def content(self) -> int:
        return self.header + BLOCK

    @property
    def end(self) -> int:
        return self.content + self.size_bytes + -self.size_bytes % BLOCK


def read_exactly(stream: IO[bytes], count: int) -> bytes:
    """Read `count` bytes, a piece at a time. Raises EOFError where there are fewer."""
    pieces, left = [], count
    while left:
        piece = stream.read(min(left, PIECE))
        if not piece:
            raise EOFError("it ends too early")
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)


class TarReader:
    """Reads a tar from its beginning. With `seekable` the content of a member is skipped without reading it."""

    def __init__(self, stream: IO[bytes], *, seekable: bool) -> None:
        self.offset = 0
        self._stream = stream
        self._size = stream.seek(0, io.SEEK_END) if seekable else None
        if seekable:
            stream.seek(0)

    def members(self) -> Iterator[Member]:
        """Yield the plain files and directories; before the next one `content` may be called.

        Raises Malformed, also for links, devices and sparse files, and EOFError where the tar is cut off.
        """
        for _ in range(MAX_MEMBERS):
            member = self._next()
            if member is None:
                self._check_end()
                return
            yield member
            self._skip_to(member.end)
        raise Malformed(f"it has more than {MAX_MEMBERS} members")

    def content(self, member: Member) -> bytes:
        """Return the content of the member that was just yielded, whose size the caller has checked."""
        return self._read(member.size_bytes)

    def _read(self, count: int) -> bytes:
        content = read_exactly(self._stream, count)
        self.offset += count
        return content

    def _skip_to(self, offset: int) -> None:
        if self._size is not None:
            if offset > self._size:
                raise EOFError("it ends too early")
            self.offset = self._stream.seek(offset)
        while self.offset < offset:
            self._read(min(PIECE, offset - self.offset))

    def _next(self) -> Member | None:
        extension: dict[str, str] = {}
        for _ in range(MAX_EXTENSIONS + 1):
            offset, block = self.offset, self._read(BLOCK)
            if not block.strip(b"\0"):
                if extension:
                    raise Malformed("it ends after an extended header")
                return None
            header = parse_header(block)
            if header.type not in (_LONG_NAME, _LONG_LINK, _PAX, _PAX_FOR_ALL):
                return _member(header, offset, block, extension)
            extension |= self._extension(header)
        raise Malformed(f"{header.name!r} has more than {MAX_EXTENSIONS} extended headers")

    def _extension(self, header: tarfile.TarInfo) -> dict[str, str]:
        """Return what an extended header says about the next member; Malformed for what is about all members."""
        if not 0 <= header.size <= MAX_EXTENSION_BYTES:
            raise Malformed(f"an extended header announces {header.size} bytes")
        data = self._read(header.size)
        self._read(-header.size % BLOCK)
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

    def _check_end(self) -> None:
        while piece := self._stream.read(PIECE):
            self.offset += len(piece)
            if piece.strip(b"\0"):
                raise Malformed("something follows its end")


def resized(member: Member, size: int) -> bytes:
    """Return the header block of `member` with another size, and nothing else changed. Raises Malformed."""
    if member.has_extended_size or not 0 <= size < 8**11:
        raise Malformed(f"{member.name} has its size in an extended header")
    block = bytearray(member.block)
    block[124:136] = b"%011o\0" % size
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def _member(
    header: tarfile.TarInfo, offset: int, block: bytes, extension: dict[str, str]
) -> Member:
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
        header=offset,
        block=block,
        has_extended_size="size" in extension,
    )


def parse_header(block: bytes) -> tarfile.TarInfo:
    """Return what a header block says. Raises NoTar."""
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "strict")
    except (tarfile.HeaderError, UnicodeDecodeError) as error:
        raise NoTar(f"it is no tar: {error}") from error


def _records(data: bytes) -> Iterator[tuple[str, str]]:
    """Yield the `LENGTH KEY=VALUE` lines of a pax header that are read here. Source: pax(1), POSIX.1-2001."""
    begin = 0
    while begin < len(data):
        length, space, _ = data[begin : begin + 20].partition(b" ")
        end = begin + _number(_text(length))
        key, equals, value = data[begin + len(length) + 1 : end - 1].partition(b"=")
        if not (space and equals) or end > len(data) or data[end - 1 : end] != b"\n":
            raise Malformed("an extended header is broken")
        if key in (b"path", b"size") or key.startswith(b"GNU.sparse."):
            yield _text(key), _text(value)
        begin = end


def _number(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 20):
        raise Malformed(f"{text[:20]!r} is no number")
    return int(text)


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise Malformed(f"a name is not UTF-8: {data[:40]!r}") from error
