"""A tar is read a header at a time, as tarfile reads it, and nothing in it is believed unseen."""

from __future__ import annotations

import contextlib
import io
import tarfile
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cria.checkpoint.tar_reader import (
    MAX_EXTENSION_BYTES,
    MAX_EXTENSIONS,
    Malformed,
    Member,
    TarReader,
    resized,
)

FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
LONG = "long/" * 24 + "name"
END = bytes(2 * tarfile.BLOCKSIZE)


class OnlyForward(io.BytesIO):
    """A stream that cannot be sought in, as a decompressor's."""

    def seek(self, *_: int) -> int:
        raise AssertionError("sought")


def read(data: bytes, *, seekable: bool = True) -> list[Member]:
    stream = io.BytesIO(data) if seekable else OnlyForward(data)
    return list(TarReader(stream, seekable=seekable).members())


def made(form: int, *files: tuple[str, bytes], **pax: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for name, content in files:
            entry = tarfile.TarInfo(name)
            entry.size, entry.pax_headers = len(content), pax
            tar.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def member(kind: bytes, name: str = "name", size: int = 0, **fields: object) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.type = kind
    entry.size = size
    for field, value in fields.items():
        setattr(entry, field, value)
    return entry.tobuf(tarfile.GNU_FORMAT)


def extension(kind: bytes, content: bytes, times: int = 1) -> bytes:
    padded = content + bytes(-len(content) % tarfile.BLOCKSIZE)
    return (member(kind, "extension", len(content)) + padded) * times


@given(
    st.lists(
        st.tuples(
            st.text("abcä/", min_size=1, max_size=160).filter(str.strip), st.binary(max_size=1500)
        ),
        max_size=6,
    ),
    st.sampled_from(FORMATS),
    st.booleans(),
)
def test_members_are_those_that_tarfile_finds(
    files: list[tuple[str, bytes]], form: int, seekable: bool
) -> None:
    files = [(f"d/{name.strip('/')}x", content) for name, content in files]
    try:
        data = made(form, *files)
    except ValueError:  # a name too long for ustar
        return

    found = read(data, seekable=seekable)

    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        expected = [(each.name, each.size, each.offset_data) for each in tar]
    assert [(each.name, each.size_bytes, each.content) for each in found] == expected


def test_a_size_in_an_extended_header_counts() -> None:
    data = made(tarfile.PAX_FORMAT, ("big", b"x" * 700), size="700")
    zero = member(tarfile.REGTYPE, "big")

    (found,) = read(data[:1024] + zero + data[1536:])

    assert (found.size_bytes, found.has_extended_size) == (700, True)
    with pytest.raises(Malformed, match="extended header"):
        resized(found, 5)


def test_a_header_with_another_size_is_one_that_tarfile_reads() -> None:
    (found,) = read(made(tarfile.USTAR_FORMAT, ("name", b"12345")))

    header = tarfile.TarInfo.frombuf(resized(found, 7), "utf-8", "strict")

    assert (header.name, header.size, header.mode) == ("name", 7, 0o644)


@pytest.mark.parametrize("seekable", [True, False])
@pytest.mark.parametrize("form", FORMATS)
def test_a_tar_that_is_cut_off_anywhere_is_not_whole(form: int, seekable: bool) -> None:
    data = made(form, (LONG, b"x" * 900), ("b", b"y"), comment="ä")
    for length in (*range(0, len(data) - len(END) - 9000, 100), 511, 513):
        with pytest.raises((EOFError, Malformed)):
            read(data[:length], seekable=seekable)


@given(st.data())
def test_whatever_a_tar_holds_it_is_read_or_refused(data: st.DataObject) -> None:
    whole = bytearray(made(data.draw(st.sampled_from(FORMATS)), (LONG, b"x" * 600), ("b", b"")))
    for _ in range(data.draw(st.integers(1, 8))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(Malformed, EOFError):
        read(bytes(whole), seekable=data.draw(st.booleans()))


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "symbolic link": (lambda: member(tarfile.SYMTYPE, linkname="/etc"), "symbolic link"),
    "hard link": (lambda: member(tarfile.LNKTYPE, linkname="/etc/shadow"), "hard link"),
    "device": (lambda: member(tarfile.CHRTYPE), "device"),
    "fifo": (lambda: member(tarfile.FIFOTYPE), "FIFO"),
    "sparse": (lambda: member(tarfile.GNUTYPE_SPARSE), "no plain file"),
    "sparse in pax": (
        lambda: extension(tarfile.XHDTYPE, b"22 GNU.sparse.major=1\n") + member(tarfile.REGTYPE),
        "sparse",
    ),
    "a huge header": (
        lambda: member(tarfile.XHDTYPE, size=MAX_EXTENSION_BYTES + 1),
        "announces 1048577 bytes",
    ),
    "many headers": (
        lambda: extension(tarfile.XHDTYPE, b"", MAX_EXTENSIONS + 1) + member(tarfile.REGTYPE),
        "more than 4 extended headers",
    ),
    "one name for all": (
        lambda: extension(tarfile.XGLTYPE, b"11 path=ab\n") + member(tarfile.REGTYPE),
        "one name",
    ),
    "a record that lies": (lambda: extension(tarfile.XHDTYPE, b"99 path=a\n"), "broken"),
    "a record without length": (lambda: extension(tarfile.XHDTYPE, b"path=a\n"), "no number"),
    "a size below zero": (
        lambda: extension(tarfile.XHDTYPE, b"11 size=-1\n") + member(tarfile.REGTYPE),
        "no number",
    ),
    "a directory with content": (lambda: member(tarfile.DIRTYPE, size=5), "cannot be"),
    "a name that is no text": (lambda: extension(tarfile.XHDTYPE, b"10 path=\xff\n"), "UTF-8"),
    "something behind": (lambda: END + b"more", "follows its end"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_tar_is_refused_in_words(what: str) -> None:
    make, words = HOSTILE[what]

    with pytest.raises(Malformed, match=words):
        read(make() + (b"" if "behind" in what else END))


def test_a_size_that_no_file_has_is_an_early_end() -> None:
    with pytest.raises(EOFError):
        read(member(tarfile.REGTYPE, size=1 << 62) + END)
    with pytest.raises(EOFError):
        read(member(tarfile.REGTYPE, size=1 << 62) + END, seekable=False)
