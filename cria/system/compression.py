"""Streams that are compressed with zstd or gzip, or not at all: which it is, to read and to write."""

from __future__ import annotations

import os
import zlib
from typing import IO, TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from types import ModuleType

Compression = Literal["none", "gzip", "zstd"]

LARGEST_WINDOW = 27  # 128 MiB: what a decompressor takes at most for a stream that asks for more
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_OTHERS = {b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x04\x22\x4d\x18": "lz4"}


class Writable(Protocol):
    """All that a compressor needs of the file that it writes to."""

    def write(self, data: bytes, /) -> int: ...


def compression_of(head: bytes) -> Compression:
    """How a stream that begins with `head` is compressed. Raises ValueError for what is not read."""
    for magic, name in _OTHERS.items():
        if head.startswith(magic):
            raise ValueError(f"it is compressed with {name}")
    if head.startswith(_GZIP):
        return "gzip"
    return "zstd" if head.startswith(_ZSTD) else "none"


def reader(file: IO[bytes], compression: Compression) -> IO[bytes]:
    """What is inside `file`; reading it raises what `damage` lists when the stream is broken."""
    opened: Any = file
    if compression == "gzip":
        import gzip

        opened = gzip.GzipFile(fileobj=file, mode="rb")
    elif compression == "zstd":
        zstd = zstd_module()
        options = {zstd.DecompressionParameter.window_log_max: LARGEST_WINDOW}
        opened = zstd.ZstdFile(file, "rb", options=options)
    return opened  # type: ignore[no-any-return]


def writer(file: Writable, compression: Compression, level: int = 1) -> IO[bytes]:
    """Writes to `file`; close it to end the stream, which leaves a compressed `file` open."""
    opened: Any = file
    if compression == "gzip":
        import gzip

        opened = gzip.GzipFile(fileobj=opened, mode="wb", compresslevel=level, mtime=0)
    elif compression == "zstd":
        zstd = zstd_module()
        options = {
            zstd.CompressionParameter.compression_level: level,
            zstd.CompressionParameter.checksum_flag: 1,
            zstd.CompressionParameter.nb_workers: os.cpu_count() or 1,
        }
        opened = zstd.ZstdFile(file, "wb", options=options)
    return opened  # type: ignore[no-any-return]


def damage() -> tuple[type[Exception], ...]:
    """What a broken stream raises while it is read."""
    import gzip

    return (zstd_module().ZstdError, gzip.BadGzipFile, zlib.error, EOFError)


def zstd_module() -> ModuleType:
    """The standard library has it from Python 3.14 on; backports.zstd is the same code for those before."""
    import sys

    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd
