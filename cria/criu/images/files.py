"""files.img: its inet sockets, unix sockets and regular files, read as structs and edited as entries."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from socket import AF_INET, AF_INET6, IPPROTO_UDP, SOCK_DGRAM, SOCK_STREAM, inet_ntop, inet_pton
from struct import pack, unpack
from typing import Literal, Protocol

import msgspec

from cria.criu.images import framing
from cria.criu.images.framing import Image
from cria.criu.images.schema import (
    FileEntry,
    InetEntry,
    RegularEntry,
    Schema,
    UnixEntry,
    decoding,
)
from cria.errors import CheckpointMismatch, DumpIncomplete
from cria.model.inventory import Socket
from cria.model.socket import STATES, Endpoint, InetSocket
from cria.system.files import writing_failed

NAME = "files.img"

# Source: enum fd_types in criu/images/fdinfo.proto.
_REGULAR, _INET, _UNIX = 1, 4, 5

# Source: include/net/tcp_states.h.
_CLOSE = 7

# Source: enum sk_shutdown in criu/images/sk-opts.proto.
_SHUTDOWN_BOTH = 3

# Source: USK_EXTERN in criu/sk-unix.c: the far end of a socket that leads out of the engine.
_EXTERNAL = 1


class ImageSocket(InetSocket, frozen=True, kw_only=True, gc=False):
    """An inet socket; `file_id` is unique in the image, `ns_id` is CRIU's number of its network namespace."""

    file_id: int
    ns_id: int
    reuse_port: bool


class UnixSocket(msgspec.Struct, frozen=True, kw_only=True):
    """A unix socket; `name` is as bound: a path, or an abstract name that begins with NUL.

    An `external` one is outside the engine, at the other end of a socket that the engine has.
    """

    file_id: int
    inode: int
    kind: Literal["stream", "dgram", "seqpacket"]
    state: str
    name: bytes
    deleted: bool
    external: bool = False


class RegularFile(msgspec.Struct, frozen=True, kw_only=True):
    """A regular file that a process has open or mapped; `flags` as in open(2), `mode` as in stat(2).

    A restore wants the file with this size and, where it is a program or library, this `build_id`.
    """

    file_id: int
    path: str
    flags: int
    mode: int
    size_bytes: int
    build_id: bytes = b""


class InetChange(Protocol):
    """What becomes of an inet socket: its ends before and after. One that `closes` is restored as hung up."""

    @property
    def old(self) -> Endpoint: ...
    @property
    def new(self) -> Endpoint: ...
    @property
    def old_peer(self) -> Endpoint | None: ...
    @property
    def new_peer(self) -> Endpoint | None: ...
    @property
    def closes(self) -> bool: ...


class AddedFile(msgspec.Struct, frozen=True, kw_only=True):
    """A regular file to add to files.img, opened read-only; `mode` as in stat(2)."""

    file_id: int
    path: str
    size_bytes: int
    mode: int


class FilesImage:
    """files.img of one dump: the entries as they stand in it, and as structs where cria knows their kind.

    It is not changed: the functions below return another one. Entries are decoded when they are first
    asked for, and raise CheckpointDamaged where they are no messages of CRIU.
    """

    def __init__(self, image: Image, schema: Schema, name: object = NAME) -> None:
        """`name` is what errors call the image."""
        self.image = image
        self.schema = schema
        self.name = name

    @cached_property
    def inet_sockets(self) -> tuple[ImageSocket, ...]:
        """Every inet socket, in the order of the image."""
        with decoding(self.name):
            return tuple(_inet(entry.isk) for _, entry in self.of_type(_INET))

    @cached_property
    def unix_sockets(self) -> tuple[UnixSocket, ...]:
        """Every unix socket, in the order of the image."""
        with decoding(self.name):
            return tuple(_unix(entry.usk) for _, entry in self.of_type(_UNIX))

    @cached_property
    def regular_files(self) -> tuple[RegularFile, ...]:
        """Every regular file, in the order of the image."""
        with decoding(self.name):
            return tuple(_regular(entry.reg) for _, entry in self.of_type(_REGULAR))

    @cached_property
    def highest_id(self) -> int:
        """The highest file ID in the image, of any kind of file; 0 where there is none."""
        with decoding(self.name):
            decode = self.schema.file_entry.FromString
            return max((decode(payload).id for payload in self.image.entries), default=0)

    def of_type(self, kind: int) -> Iterator[tuple[int, FileEntry]]:
        """Decode the entries of one kind, each with its place in the image."""
        # The type is field 1, and every encoder writes fields in the order of their numbers, so that
        # most entries need no decoding.
        prefix, typed = bytes((0x08, kind)), b"\x08"
        decode = self.schema.file_entry.FromString
        for index, payload in enumerate(self.image.entries):
            if payload.startswith(prefix) or not payload.startswith(typed):
                entry = decode(payload)
                if entry.type == kind:
                    yield index, entry

    def with_entries(self, entries: Iterable[bytes]) -> FilesImage:
        """Return an image with other entries, named as this one."""
        image = Image(header=self.image.header, entries=tuple(entries))
        return FilesImage(image, self.schema, self.name)

    def write(self, directory: Path, *, durable: bool = True) -> Path:
        """Replace files.img in `directory` in one step, and return its path.

        What only one restore needs need not be `durable`. Raises NotWritable or NoSpace.
        """
        path = directory / NAME
        try:
            framing.write(path, self.image, durable=durable)
        except OSError as error:
            raise writing_failed(error, path) from error
        return path


def edit_sockets(
    files: FilesImage, *, inet: Mapping[int, InetChange], unix: Mapping[int, bytes] | None = None
) -> FilesImage:
    """Change the sockets named by file ID: inet sockets as `inet` says, names of unix sockets to `unix`.

    Only changed entries are encoded again, and fields that this pycriu does not know stay in them. Raises
    CheckpointMismatch where the image does not hold the sockets to change.
    """
    entries = list(files.image.entries)
    left = dict(inet)
    with decoding(files.name):
        for index, entry in files.of_type(_INET) if inet else ():
            if (change := left.pop(entry.id, None)) is not None:
                _apply(entry.isk, change)
                entries[index] = entry.SerializeToString()
        for missing in left:
            raise _foreign(missing, "there is none")
        for index, entry in files.of_type(_UNIX) if unix else ():
            if unix and (name := unix.get(entry.id)) is not None:
                entry.usk.name = name
                entries[index] = entry.SerializeToString()
    return files.with_entries(entries)


def add_files(files: FilesImage, added: Iterable[AddedFile]) -> FilesImage:
    """Add regular files. Raises CheckpointMismatch where one of their IDs is taken or below one that is."""
    new = tuple(_entry(file, files.schema) for file in added)
    highest = files.highest_id
    if any(entry.id <= highest for entry in new):
        raise CheckpointMismatch(
            "the file for shared memory was made for other images",
            details=f"it is to have an ID of {highest} or below, which is taken",
        )
    return files.with_entries([*files.image.entries, *(e.SerializeToString() for e in new)])


def remove_files(files: FilesImage, ids: Collection[int]) -> FilesImage:
    """Remove the regular files with these IDs."""
    with decoding(files.name):
        removed = {index for index, entry in files.of_type(_REGULAR) if entry.id in ids}
    entries = files.image.entries
    return files.with_entries([e for index, e in enumerate(entries) if index not in removed])


def check_complete(files: FilesImage, listeners: Iterable[Socket]) -> None:
    """Raise DumpIncomplete, naming each of `listeners` that files.img lacks.

    CRIU can leave out listeners without an error (its issue 2764).
    """
    stored = {socket.inode for socket in files.inet_sockets}
    missing = [socket for socket in listeners if socket.inode not in stored]
    if missing:
        raise DumpIncomplete(
            "CRIU left listeners out of the checkpoint",
            details="\n".join(f"{socket.local} ({socket.role.name})" for socket in missing),
            remedy="try again; if it stays, please report it with the log",
        )


def _entry(file: AddedFile, schema: Schema) -> FileEntry:
    entry = schema.file_entry(type=_REGULAR, id=file.file_id)
    entry.reg.id, entry.reg.name = file.file_id, file.path
    entry.reg.flags, entry.reg.pos = os.O_RDONLY, 0
    entry.reg.size, entry.reg.mode = file.size_bytes, file.mode
    # Required by the schema: the owner of SIGIO, which nobody asks for.
    owner = entry.reg.fown
    owner.uid = owner.euid = owner.signum = owner.pid_type = owner.pid = 0
    return entry


def _foreign(file_id: int, why: str) -> CheckpointMismatch:
    return CheckpointMismatch(
        f"socket {file_id} of the image is not the one to change",
        details=why,
        remedy="plan the ports from this image directory again",
    )


def _inet(isk: InetEntry) -> ImageSocket:
    ipv6 = isk.family == AF_INET6
    connected = isk.dst_port != 0
    return ImageSocket(
        file_id=isk.id,
        inode=isk.ino,
        ns_id=isk.ns_id,
        family="ipv6" if ipv6 else "ipv4",
        protocol="udp" if isk.proto == IPPROTO_UDP else "tcp",
        state=STATES.get(isk.state, "UNKNOWN"),
        local=Endpoint(address=_address(tuple(isk.src_addr)), port=isk.src_port),
        peer=Endpoint(address=_address(tuple(isk.dst_addr)), port=isk.dst_port)
        if connected
        else None,
        dual_stack=ipv6 and not isk.v6only,
        reuse_port=isk.opts.so_reuseport,
    )


def _unix(usk: UnixEntry) -> UnixSocket:
    kinds: dict[int, Literal["stream", "dgram"]] = {SOCK_STREAM: "stream", SOCK_DGRAM: "dgram"}
    return UnixSocket(
        file_id=usk.id,
        inode=usk.ino,
        kind=kinds.get(usk.type, "seqpacket"),
        state=STATES.get(usk.state, "UNKNOWN"),
        name=usk.name,
        deleted=usk.deleted,
        external=bool(usk.uflags & _EXTERNAL),
    )


def _regular(reg: RegularEntry) -> RegularFile:
    return RegularFile(
        file_id=reg.id,
        path=reg.name,
        flags=reg.flags,
        mode=reg.mode,
        size_bytes=reg.size,
        build_id=pack(f"={len(reg.build_id)}I", *reg.build_id),
    )


def _apply(isk: InetEntry, change: InetChange) -> None:
    old, new, old_peer, new_peer = change.old, change.new, change.old_peer, change.new_peer
    if isk.src_port != old.port or isk.dst_port != (old_peer.port if old_peer else 0):
        raise _foreign(isk.id, f"it has ports {isk.src_port} and {isk.dst_port}")
    if change.closes:
        # Restored in the state CLOSE alone a socket reads as ENOTCONN, shut down both ways as end of file
        # (tried with CRIU 4.2.1).
        isk.state, isk.shutdown = _CLOSE, _SHUTDOWN_BOTH
        isk.src_port = isk.dst_port = 0
        isk.src_addr[:] = [0] * len(isk.src_addr)
        isk.dst_addr[:] = [0] * len(isk.dst_addr)
        return
    isk.src_port = new.port
    if new.address != old.address:
        isk.src_addr[:] = _address_words(new.address, isk.family)
    if old_peer is not None and new_peer is not None:
        isk.dst_port = new_peer.port
        if new_peer.address != old_peer.address:
            isk.dst_addr[:] = _address_words(new_peer.address, isk.family)


@lru_cache(maxsize=4096)
def _address(numbers: tuple[int, ...]) -> str:
    # Addresses are stored as 32-bit words that hold the bytes in network order.
    if not any(numbers):
        return "0.0.0.0" if len(numbers) == 1 else "::"
    return inet_ntop(
        AF_INET if len(numbers) == 1 else AF_INET6, pack(f"={len(numbers)}I", *numbers)
    )


@lru_cache(maxsize=4096)
def _address_words(address: str, family: int) -> tuple[int, ...]:
    if family == AF_INET6 and ":" not in address:
        address = f"::ffff:{address}"
    packed = inet_pton(AF_INET6 if family == AF_INET6 else AF_INET, address)
    return unpack(f"={len(packed) // 4}I", packed)
