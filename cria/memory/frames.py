"""A file of zstd frames with an index at its end: compressed, and still read and decompressed in any order.

The format is zstd's own "seekable format" (contrib/seekable_format in its source), version 0.1.0, with
frames of 2 MiB; `zstd -d` opens it as well.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from struct import Struct
from typing import Any

from cria.errors import CheckpointDamaged
from cria.system.compression import zstd_module

FRAME = 2 << 20
PIECE = 128 << 10
LEVEL = 1

_SKIPPABLE = Struct("<II")  # magic, size of what follows
_ENTRY = Struct("<II")  # a frame: compressed size, size
_FOOTER = Struct("<IBI")  # number of frames, descriptor, magic
_MAGIC, _SEEKABLE = 0x184D2A5E, 0x8F92EAB1


def write(path: Path, pieces: Iterable[bytes]) -> int:
    """Compress `pieces`, each up to 2 MiB, into the new file `path`, every processor at work.

    Returns the bytes of the file.
    """
    index: list[tuple[int, int]] = []
    with path.open("xb") as file:
        path.chmod(0o600)
        for size, frame in _compressed(_filled(pieces)):
            file.write(frame)
            index.append((len(frame), size))
        table = b"".join(_ENTRY.pack(*entry) for entry in index)
        file.write(_SKIPPABLE.pack(_MAGIC, len(table) + _FOOTER.size))
        file.write(table + _FOOTER.pack(len(index), 0, _SEEKABLE))
        return file.tell()


class Frames:
    """An open file of frames, read by many threads at once; `size` is that of what it holds."""

    def __init__(self, path: Path) -> None:
        """Raises CheckpointDamaged, and OSError when `path` cannot be read."""
        self._path = path
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            index = self._read_index()
        except BaseException:
            self.close()
            raise
        self._places, self.starts, place, start = [], [], 0, 0
        for compressed, size in index:
            self._places.append((place, compressed, size))
            self.starts.append(start)
            place, start = place + compressed, start + size
        self.size = start

    def pieces(self, number: int) -> Iterator[bytes]:
        """What the frame `number` holds, in pieces of up to 128 KiB. Raises CheckpointDamaged.

        Larger ones would be fresh memory each time, which costs more than to decompress into it.
        """
        place, compressed, size = self._places[number]
        zstd = zstd_module()
        decompressor, left = zstd.ZstdDecompressor(), size
        data = os.pread(self._file, compressed, place)
        try:
            while not decompressor.eof and left >= 0:
                piece = decompressor.decompress(data, PIECE)
                if not piece and not decompressor.eof:
                    break
                data, left = b"", left - len(piece)
                yield piece
        except zstd.ZstdError as error:
            raise self._damaged(f"frame {number}: {error}") from error
        if left or not decompressor.eof:
            raise self._damaged(f"frame {number} does not hold {size} bytes")

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Frames:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read_index(self) -> list[tuple[int, int]]:
        size = os.fstat(self._file).st_size
        footer = os.pread(self._file, _FOOTER.size, max(0, size - _FOOTER.size))
        if len(footer) != _FOOTER.size or _FOOTER.unpack(footer)[1:] != (0, _SEEKABLE):
            raise self._damaged("it does not end with an index of frames")
        length = _FOOTER.unpack(footer)[0] * _ENTRY.size
        begin = size - _FOOTER.size - length
        if begin < _SKIPPABLE.size:
            raise self._damaged("its index is cut off")
        index = list(_ENTRY.iter_unpack(os.pread(self._file, length, begin)))
        if sum(compressed for compressed, _ in index) != begin - _SKIPPABLE.size:
            raise self._damaged("its frames are not as long as its index says")
        if any(size > FRAME for _, size in index):
            raise self._damaged(f"a frame is said to hold more than {FRAME} bytes")
        return index

    def _damaged(self, why: str) -> CheckpointDamaged:
        return CheckpointDamaged(f"{self._path} cannot be decompressed", details=why)


def _filled(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in pieces of one frame each: many small ones would compress badly."""
    waiting = bytearray()
    for piece in pieces:
        waiting += piece
        while len(waiting) >= FRAME:
            yield bytes(waiting[:FRAME])
            del waiting[:FRAME]
    if waiting:
        yield bytes(waiting)


def _compressed(pieces: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """The size of each piece and its frame, in order; no more are under way than threads can do."""
    zstd = zstd_module()
    options = {
        zstd.CompressionParameter.compression_level: LEVEL,
        zstd.CompressionParameter.checksum_flag: 1,
    }

    def compress(piece: bytes) -> tuple[int, bytes]:
        return len(piece), zstd.compress(piece, options=options)

    threads = os.cpu_count() or 1
    from concurrent.futures import Future, ThreadPoolExecutor  # a plain restore needs none

    under_way: deque[Future[Any]] = deque()
    with ThreadPoolExecutor(max_workers=threads) as pool:
        for piece in pieces:
            under_way.append(pool.submit(compress, piece))
            if len(under_way) > 2 * threads:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
