"""The entries of files.img: read as structs, edited in place, nothing else touched."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest

from cria.criu.images import files
from cria.criu.images.files import InetSocket
from cria.criu.images.framing import Image
from cria.criu.messages import find_pycriu
from cria.errors import CheckpointMismatch, PycriuMissing
from cria.model.inventory import Endpoint

LOOPBACK = 0x0100007F
UNKNOWN_FIELD = b"\xfa\x3f\x03abc"  # field 1023, three bytes: what a newer CRIU might add


class Change(msgspec.Struct, frozen=True):
    """What becomes of a socket, as a move of a port plan would say it."""

    old: Endpoint
    new: Endpoint
    old_peer: Endpoint | None
    new_peer: Endpoint | None
    closes: bool = False


def change(
    socket: InetSocket, new: Endpoint | None = None, new_peer: Endpoint | None = None, **how: bool
) -> Change:
    return Change(socket.local, new or socket.local, socket.peer, new_peer or socket.peer, **how)


def complete(message: Any) -> Any:
    """`message` with every required field that it lacks set to zero or empty."""
    while missing := message.FindInitializationErrors():
        *way, last = missing[0].split(".")
        owner = message
        for name in way:
            owner = getattr(owner, name)
        if owner.DESCRIPTOR.fields_by_name[last].message_type:
            getattr(owner, last).SetInParent()
        else:
            setattr(owner, last, getattr(owner, last))
    return message


def entry(fdinfo: ModuleType, file_id: int, **fields: Any) -> Any:
    message = fdinfo.file_entry(type=4, id=file_id)
    isk = {"id": file_id, "ino": 100 + file_id, "family": 2, "type": 1, "proto": 6, "state": 1}
    isk |= {"src_port": 8000, "dst_port": 40000, "flags": 2, "backlog": 0, "ns_id": 7}
    isk |= {"src_addr": [LOOPBACK], "dst_addr": [LOOPBACK]} | fields
    message.isk.SetInParent()
    for name, value in isk.items():
        field = getattr(message.isk, name)
        field.extend(value) if isinstance(value, list) else setattr(message.isk, name, value)
    return complete(message)


def image(*messages: Any) -> Image:
    return Image(header=b"head", entries=tuple(m.SerializeToString() for m in messages))


def test_an_accepted_socket_has_both_ends(fdinfo: ModuleType) -> None:
    (socket,) = files.inet_sockets(image(entry(fdinfo, 3)))
    assert (str(socket.local), str(socket.peer)) == ("127.0.0.1:8000", "127.0.0.1:40000")
    assert (socket.file_id, socket.inode, socket.ns_id) == (3, 103, 7)
    assert (socket.state, socket.protocol, socket.family) == ("ESTABLISHED", "tcp", "ipv4")


def test_a_dual_stack_listener_is_told_from_a_v6_only_one(fdinfo: ModuleType) -> None:
    words = {"family": 10, "state": 10, "dst_port": 0, "src_addr": [0] * 4, "dst_addr": [0] * 4}
    both = entry(fdinfo, 1, **words)
    only = entry(fdinfo, 2, **words, v6only=True)
    one, two = files.inet_sockets(image(both, only))
    assert (one.dual_stack, two.dual_stack) == (True, False)
    assert (one.local, one.peer, one.state) == (Endpoint(address="::", port=8000), None, "LISTEN")


def test_a_v4_mapped_address_keeps_its_form_when_its_end_moves(fdinfo: ModuleType) -> None:
    mapped = [0, 0, 0xFFFF0000, LOOPBACK]
    old = image(entry(fdinfo, 1, family=10, src_addr=mapped, dst_addr=mapped))
    (socket,) = files.inet_sockets(old)
    assert socket.local.address == "::ffff:127.0.0.1"
    edit = change(socket, Endpoint(address="127.0.0.2", port=9))
    (entry_after,) = files.edited(old, inet={1: edit}).entries
    after = fdinfo.file_entry.FromString(entry_after)
    moved = [*mapped[:3], 0x0200007F]
    assert (after.isk.src_port, list(after.isk.src_addr)) == (9, moved)


def test_an_edit_changes_the_named_socket_only_and_keeps_unknown_fields(fdinfo: ModuleType) -> None:
    old = image(entry(fdinfo, 1), entry(fdinfo, 2), fdinfo.file_entry(type=1, id=3))
    old = Image(header=old.header, entries=(old.entries[0] + UNKNOWN_FIELD, *old.entries[1:]))
    edit = change(files.inet_sockets(old)[0], None, Endpoint(address="127.0.0.2", port=5))
    new = files.edited(old, inet={1: edit})
    assert new.entries[1:] == old.entries[1:]
    assert new.entries[0].endswith(UNKNOWN_FIELD)
    (first, _) = files.inet_sockets(new)
    assert (str(first.local), str(first.peer)) == ("127.0.0.1:8000", "127.0.0.2:5")


def test_a_closed_socket_keeps_its_inode_and_reads_as_hung_up(fdinfo: ModuleType) -> None:
    old = image(entry(fdinfo, 1))
    edit = change(files.inet_sockets(old)[0], closes=True)
    new = files.edited(old, inet={1: edit})
    isk = fdinfo.file_entry.FromString(new.entries[0]).isk
    assert (isk.state, isk.shutdown, isk.ino) == (7, 3, 101)
    assert (isk.src_port, isk.dst_port, list(isk.src_addr), list(isk.dst_addr)) == (0, 0, [0], [0])


def test_a_change_for_another_image_is_refused(fdinfo: ModuleType) -> None:
    old = image(entry(fdinfo, 1))
    (socket,) = files.inet_sockets(old)
    edit = change(socket, Endpoint(address="127.0.0.1", port=9))
    with pytest.raises(CheckpointMismatch, match="socket 1 "):
        files.edited(image(entry(fdinfo, 1, src_port=8001)), inet={1: edit})
    with pytest.raises(CheckpointMismatch, match="socket 2 "):
        files.edited(old, inet={2: edit})


def test_entries_whose_fields_stand_in_another_order_are_read_too(fdinfo: ModuleType) -> None:
    message = entry(fdinfo, 1)
    whole = message.SerializeToString()
    turned = whole[2:] + whole[:2]  # the type last
    assert files.inet_sockets(Image(header=b"", entries=(turned,)))[0].file_id == 1


def test_a_unix_socket_gets_a_new_name(fdinfo: ModuleType) -> None:
    message = fdinfo.file_entry(type=5, id=9)
    message.usk.name = b"\0old"
    message.usk.state = 10
    complete(message)
    new = files.edited(
        Image(header=b"", entries=(message.SerializeToString(),)),
        inet={},
        unix={9: b"\0new"},
    )
    assert fdinfo.file_entry.FromString(new.entries[0]).usk.name == b"\0new"


def test_a_pycriu_that_is_nowhere_is_reported_with_the_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cria.criu.messages._SYSTEM", tmp_path / "system")
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(PycriuMissing) as caught:
        find_pycriu(tmp_path / "usr" / "sbin" / "criu")
    assert str(tmp_path / "usr/lib/python3/dist-packages/pycriu") in str(caught.value.details)
    assert str(tmp_path / "system/pycriu") in str(caught.value.details)


def test_the_pycriu_beside_the_program_is_taken_even_through_a_link(tmp_path: Path) -> None:
    package = tmp_path / "usr/lib/python3/dist-packages/pycriu"
    (package / "images").mkdir(parents=True)
    (package / "images/fdinfo_pb2.py").touch()
    (tmp_path / "usr/sbin").mkdir()
    (tmp_path / "usr/sbin/criu").touch()
    (tmp_path / "criu").symlink_to(tmp_path / "usr/sbin/criu")
    assert find_pycriu(tmp_path / "criu") == package
