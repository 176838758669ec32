"""Read ELF files (elf(5)): the build-id, by which CRIU recognizes a library, and the sections."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator

IDENT = b"\x7fELF\x02\x01"  # 64 bit, little endian: the machines that vLLM runs on
_PT_NOTE, _NT_GNU_BUILD_ID = 4, 3
# Elf64_Ehdr from e_phoff: e_phoff, e_phentsize, e_phnum. Elf64_Phdr: p_type, p_offset, p_filesz.
_HEADER = struct.Struct("<32xQ14xHH")
_PROGRAM = struct.Struct("<I4xQ16xQ16x")
_NOTE = struct.Struct("<III")
# Elf64_Ehdr: e_shoff, e_shentsize, e_shnum, e_shstrndx. Elf64_Shdr: sh_name, sh_offset, sh_size.
_SECTIONS_HEADER = struct.Struct("<40xQ10xHHH")
_SECTION = struct.Struct("<I20xQQ24x")


def build_id(path: str) -> bytes | None:
    """The build-id of the file at `path`, or None where it has none. Raises OSError."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return _build_id(file)
    except struct.error:  # cut short
        return None
    finally:
        os.close(file)


def _build_id(file: int) -> bytes | None:
    head = os.pread(file, 4096, 0)
    if not head.startswith(IDENT):
        return None
    table, size, count = _HEADER.unpack_from(head)
    programs = os.pread(file, size * count, table)
    for index in range(count):
        kind, offset, length = _PROGRAM.unpack_from(programs, index * size)
        if kind == _PT_NOTE and (build_id := _note(os.pread(file, length, offset))):
            return build_id
    return None


def _note(notes: bytes) -> bytes | None:
    at = 0
    while at + _NOTE.size <= len(notes):
        name_size, size, kind = _NOTE.unpack_from(notes, at)
        start = at + _NOTE.size + (name_size + 3 & ~3)
        if kind == _NT_GNU_BUILD_ID and notes[at + _NOTE.size :].startswith(b"GNU\0"):
            return notes[start : start + size]
        at = start + (size + 3 & ~3)
    return None


def sections(content: mmap.mmap) -> Iterator[tuple[bytes, tuple[int, int]]]:
    """Yield the name of each section, and where in the file it begins and ends.

    Raises struct.error or IndexError where the file is not complete.
    """
    table, size, count, names_index = _SECTIONS_HEADER.unpack_from(content)
    if not table or size < _SECTION.size:
        return
    headers = [_SECTION.unpack_from(content, table + index * size) for index in range(count)]
    names = headers[names_index][1]
    for name, offset, length in headers:
        end = content.find(b"\0", names + name)
        yield content[names + name : end], (offset, min(offset + length, len(content)))
