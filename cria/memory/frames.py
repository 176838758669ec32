"""A file of zstd frames with an index, so that it can be read and decompressed in any order.

The format is zstd's "seekable format" 0.1.0 (contrib/seekable_format in zstd's source) with frames of
2 MiB. `zstd -d` reads it too.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from struct import Struct
from typing import TYPE_CHECKING

from cria.errors import CheckpointDamaged
from cria.system.compression import zstd_module

if TYPE_CHECKING:
    from concurrent.futures import Future

FRAME_BYTES = 2 << 20
PIECE_BYTES = 128 << 10
LEVEL = 1

_SKIPPABLE = Struct("<II")  # magic, size of what follows
_ENTRY = Struct("<II")  # compressed size and size of a frame
_FOOTER = Struct("<IBI")  # number of frames, descriptor, magic
_SKIPPABLE_MAGIC, _SEEKABLE_MAGIC = 0x184D2A5E, 0x8F92EAB1


def write(path: Path, pieces: Iterable[bytes]) -> int:
    """Compress `pieces` into the new file `path` on all processors; return the bytes of the file.

    A piece may have any size up to 2 MiB.
    """
    index: list[tuple[int, int]] = []
    with path.open("xb") as file:
        path.chmod(0o600)
        for size, frame in _compress(_join(pieces)):
            file.write(frame)
            index.append((len(frame), size))
        table = b"".join(_ENTRY.pack(*entry) for entry in index)
        file.write(_SKIPPABLE.pack(_SKIPPABLE_MAGIC, len(table) + _FOOTER.size))
        file.write(table + _FOOTER.pack(len(index), 0, _SEEKABLE_MAGIC))
        return file.tell()


class Frames:
    """An open file of frames, which many threads may read at once.

    `size` is the bytes of the content. `starts` are the offsets in the content where frames begin.
    """

    def __init__(self, path: Path) -> None:
        """Open `path`. Raises CheckpointDamaged, or OSError where the file cannot be read."""
        self._path = path
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            index = self._read_index()
        except BaseException:
            self.close()
            raise
        self._frames: list[tuple[int, int, int]] = []  # offset in the file, compressed size, size
        self.starts: list[int] = []
        offset = start = 0
        for compressed, size in index:
            self._frames.append((offset, compressed, size))
            self.starts.append(start)
            offset, start = offset + compressed, start + size
        self.size = start

    def pieces(self, number: int) -> Iterator[bytes]:
        """Decompress the frame `number` in pieces of up to 128 KiB. Raises CheckpointDamaged.

        Larger pieces would be new memory each time, which costs more than to decompress into it.
        """
        offset, compressed, size = self._frames[number]
        zstd = zstd_module()
        decompressor, remaining = zstd.ZstdDecompressor(), size
        data = os.pread(self._file, compressed, offset)
        try:
            while not decompressor.eof and remaining >= 0:
                piece = decompressor.decompress(data, PIECE_BYTES)
                if not piece and not decompressor.eof:
                    break
                data, remaining = b"", remaining - len(piece)
                yield piece
        except zstd.ZstdError as error:
            raise self._damaged(f"frame {number}: {error}") from error
        if remaining or not decompressor.eof:
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
        """Return the compressed size and the size of each frame."""
        file_size = os.fstat(self._file).st_size
        footer = os.pread(self._file, _FOOTER.size, max(0, file_size - _FOOTER.size))
        if len(footer) != _FOOTER.size or _FOOTER.unpack(footer)[1:] != (0, _SEEKABLE_MAGIC):
            raise self._damaged("the file does not end with an index of frames")
        length = _FOOTER.unpack(footer)[0] * _ENTRY.size
        begin = file_size - _FOOTER.size - length
        if begin < _SKIPPABLE.size:
            raise self._damaged("the index is cut off")
        index = list(_ENTRY.iter_unpack(os.pread(self._file, length, begin)))
        if sum(compressed for compressed, _ in index) != begin - _SKIPPABLE.size:
            raise self._damaged("the frames have not the sizes that the index says")
        if any(size > FRAME_BYTES for _, size in index):
            raise self._damaged(f"the index has a frame of more than {FRAME_BYTES} bytes")
        return index

    def _damaged(self, why: str) -> CheckpointDamaged:
        return CheckpointDamaged(f"{self._path} cannot be decompressed", details=why)


def _join(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the same bytes in pieces of one frame each: small frames compress badly."""
    buffer = bytearray()
    for piece in pieces:
        buffer += piece
        while len(buffer) >= FRAME_BYTES:
            yield bytes(buffer[:FRAME_BYTES])
            del buffer[:FRAME_BYTES]
    if buffer:
        yield bytes(buffer)


def _compress(pieces: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """Yield the size of each piece and its frame, in order.

    Only a few pieces for each thread are in memory at a time.
    """
    from concurrent.futures import ThreadPoolExecutor  # only a compressed checkpoint needs it

    zstd = zstd_module()
    options = {
        zstd.CompressionParameter.compression_level: LEVEL,
        zstd.CompressionParameter.checksum_flag: 1,
    }

    def compress(piece: bytes) -> tuple[int, bytes]:
        return len(piece), zstd.compress(piece, options=options)

    threads = os.cpu_count() or 1
    futures: deque[Future[tuple[int, bytes]]] = deque()
    with ThreadPoolExecutor(max_workers=threads) as pool:
        for piece in pieces:
            futures.append(pool.submit(compress, piece))
            if len(futures) > 2 * threads:
                yield futures.popleft().result()
        while futures:
            yield futures.popleft().result()
