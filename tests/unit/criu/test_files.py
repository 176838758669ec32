"""The entries of files.img are read as structs, and an edit changes nothing but what it names."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import msgspec
import pytest

from cria.criu.images.files import (
    AddedFile,
    FilesImage,
    InetSocket,
    add_files,
    edit_sockets,
    remove_files,
)
from cria.criu.images.framing import Image
from cria.criu.images.schema import Schema
from cria.errors import CheckpointDamaged, CheckpointMismatch
from cria.model.socket import Endpoint

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


def image(*messages: Any) -> FilesImage:
    return of_entries(*(message.SerializeToString() for message in messages))


def of_entries(*entries: bytes) -> FilesImage:
    return FilesImage(Image(header=b"head", entries=entries), Schema())


def test_an_accepted_socket_has_both_ends(fdinfo: ModuleType) -> None:
    (socket,) = image(entry(fdinfo, 3)).inet_sockets
    assert (str(socket.local), str(socket.peer)) == ("127.0.0.1:8000", "127.0.0.1:40000")
    assert (socket.file_id, socket.inode, socket.ns_id) == (3, 103, 7)
    assert (socket.state, socket.protocol, socket.family) == ("ESTABLISHED", "tcp", "ipv4")


def test_a_dual_stack_listener_is_told_from_a_v6_only_one(fdinfo: ModuleType) -> None:
    words = {"family": 10, "state": 10, "dst_port": 0, "src_addr": [0] * 4, "dst_addr": [0] * 4}
    both = entry(fdinfo, 1, **words)
    only = entry(fdinfo, 2, **words, v6only=True)
    one, two = image(both, only).inet_sockets
    assert (one.dual_stack, two.dual_stack) == (True, False)
    assert (one.local, one.peer, one.state) == (Endpoint(address="::", port=8000), None, "LISTEN")


def test_a_v4_mapped_address_keeps_its_form_when_its_end_moves(fdinfo: ModuleType) -> None:
    mapped = [0, 0, 0xFFFF0000, LOOPBACK]
    old = image(entry(fdinfo, 1, family=10, src_addr=mapped, dst_addr=mapped))
    (socket,) = old.inet_sockets
    assert socket.local.address == "::ffff:127.0.0.1"
    edit = change(socket, Endpoint(address="127.0.0.2", port=9))
    (entry_after,) = edit_sockets(old, inet={1: edit}).image.entries
    after = fdinfo.file_entry.FromString(entry_after)
    moved = [*mapped[:3], 0x0200007F]
    assert (after.isk.src_port, list(after.isk.src_addr)) == (9, moved)


def test_an_edit_changes_the_named_socket_only_and_keeps_unknown_fields(fdinfo: ModuleType) -> None:
    old = image(entry(fdinfo, 1), entry(fdinfo, 2), fdinfo.file_entry(type=1, id=3))
    first, *others = old.image.entries
    old = of_entries(first + UNKNOWN_FIELD, *others)
    edit = change(old.inet_sockets[0], None, Endpoint(address="127.0.0.2", port=5))
    new = edit_sockets(old, inet={1: edit})
    assert new.image.entries[1:] == old.image.entries[1:]
    assert new.image.entries[0].endswith(UNKNOWN_FIELD)
    moved, _ = new.inet_sockets
    assert (str(moved.local), str(moved.peer)) == ("127.0.0.1:8000", "127.0.0.2:5")


def test_a_closed_socket_keeps_its_inode_and_reads_as_hung_up(fdinfo: ModuleType) -> None:
    old = image(entry(fdinfo, 1))
    edit = change(old.inet_sockets[0], closes=True)
    new = edit_sockets(old, inet={1: edit})
    isk = fdinfo.file_entry.FromString(new.image.entries[0]).isk
    assert (isk.state, isk.shutdown, isk.ino) == (7, 3, 101)
    assert (isk.src_port, isk.dst_port, list(isk.src_addr), list(isk.dst_addr)) == (0, 0, [0], [0])


def test_a_change_for_another_image_is_refused(fdinfo: ModuleType) -> None:
    old = image(entry(fdinfo, 1))
    (socket,) = old.inet_sockets
    edit = change(socket, Endpoint(address="127.0.0.1", port=9))
    with pytest.raises(CheckpointMismatch, match="socket 1 "):
        edit_sockets(image(entry(fdinfo, 1, src_port=8001)), inet={1: edit})
    with pytest.raises(CheckpointMismatch, match="socket 2 "):
        edit_sockets(old, inet={2: edit})


def test_entries_whose_fields_stand_in_another_order_are_read_too(fdinfo: ModuleType) -> None:
    message = entry(fdinfo, 1)
    whole = message.SerializeToString()
    turned = whole[2:] + whole[:2]  # the type last
    assert of_entries(turned).inet_sockets[0].file_id == 1


def test_a_unix_socket_gets_a_new_name(fdinfo: ModuleType) -> None:
    message = fdinfo.file_entry(type=5, id=9)
    message.usk.name = b"\0old"
    message.usk.state = 10
    complete(message)
    new = edit_sockets(image(message), inet={}, unix={9: b"\0new"})
    assert fdinfo.file_entry.FromString(new.image.entries[0]).usk.name == b"\0new"


def regular(number: int) -> AddedFile:
    path = f"/c/.q.shared/k/{number}.mem"
    return AddedFile(file_id=number, path=path, size_bytes=1 << 42, mode=0o100400)


def test_files_are_added_and_removed_again(fdinfo: ModuleType) -> None:
    before = image(entry(fdinfo, 4))

    after = add_files(before, [regular(5)])

    (added,) = after.regular_files
    assert (added.path, added.size_bytes, added.mode) == ("/c/.q.shared/k/5.mem", 1 << 42, 0o100400)
    assert (before.highest_id, after.highest_id) == (4, 5)
    assert remove_files(after, {4, 5}).image == before.image


def test_an_added_file_with_an_id_that_is_taken_is_refused(fdinfo: ModuleType) -> None:
    with pytest.raises(CheckpointMismatch):
        add_files(image(entry(fdinfo, 4)), [regular(4)])


def test_an_entry_that_is_no_message_is_damage(fdinfo: ModuleType) -> None:
    with pytest.raises(CheckpointDamaged, match=r"files\.img"):
        of_entries(b"\x08\x04\xff").inet_sockets  # noqa: B018
