"""The build-id of ELF files, made by hand."""

import struct
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from cria.system.elf import build_id


def elf(*notes: tuple[bytes, int, bytes]) -> bytes:
    """A 64-bit little-endian ELF file with one PT_NOTE segment after a PT_LOAD one."""
    body = b""
    for name, kind, content in notes:
        body += struct.pack("<III", len(name), len(content), kind)
        body += name.ljust(len(name) + 3 & ~3, b"\0") + content.ljust(len(content) + 3 & ~3, b"\0")
    offset = 64 + 2 * 56
    head = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    head += struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    load = struct.pack("<IIQQQQQQ", 1, 5, 0, 0, 0, 0, 0, 4096)
    note = struct.pack("<IIQQQQQQ", 4, 4, offset, 0, 0, len(body), len(body), 4)
    return head + load + note + body


@given(identity=st.binary(min_size=1, max_size=20))
def test_it_is_found_behind_other_notes(tmp_path_factory: object, identity: bytes) -> None:
    path = tmp_path_factory.mktemp("elf") / "program"  # type: ignore[attr-defined]
    path.write_bytes(elf((b"GNU\0", 1, b"abi"), (b"Go\0", 4, b"other"), (b"GNU\0", 3, identity)))
    assert build_id(str(path)) == identity


def test_a_file_without_one(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(elf((b"GNU\0", 1, b"abi")))
    (tmp_path / "text").write_text("#!/bin/sh\n")
    (tmp_path / "empty").write_bytes(b"")
    for name in ("plain", "text", "empty"):
        assert build_id(str(tmp_path / name)) is None


def test_a_file_that_was_cut_short(tmp_path: Path) -> None:
    whole = elf((b"GNU\0", 3, b"identity"))
    for length in range(len(whole) - 8):
        (tmp_path / "cut").write_bytes(whole[:length])
        assert build_id(str(tmp_path / "cut")) is None
