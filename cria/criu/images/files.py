"""The entries of files.img: inet sockets, unix sockets and regular files, to read and to edit in place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from socket import AF_INET, AF_INET6, IPPROTO_UDP, SOCK_DGRAM, SOCK_STREAM, inet_ntop, inet_pton
from struct import pack, unpack
from typing import Any, Literal, Protocol

import msgspec

from cria.criu.images import framing
from cria.criu.images.framing import Image
from cria.criu.messages import load
from cria.errors import CheckpointMismatch, DumpIncomplete
from cria.model.inventory import Endpoint, Family, Socket
from cria.model.inventory import Protocol as Transport

NAME = "files.img"

# Source: enum fd_types in criu/images/fdinfo.proto.
_REGULAR, _INET, _UNIX = 1, 4, 5

# Source: include/net/tcp_states.h.
STATES = (
    *("UNKNOWN", "ESTABLISHED", "SYN_SENT", "SYN_RECV", "FIN_WAIT1", "FIN_WAIT2", "TIME_WAIT"),
    *("CLOSE", "CLOSE_WAIT", "LAST_ACK", "LISTEN", "CLOSING", "NEW_SYN_RECV"),
)
_CLOSE = STATES.index("CLOSE")

# Source: enum sk_shutdown in criu/images/sk-opts.proto.
_SHUTDOWN_BOTH = 3

# Source: USK_EXTERN in criu/include/sockets.h: the far end of a socket that leads out of the tree.
_EXTERNAL = 1


class InetSocket(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An inet socket of an image; `file_id` is unique in the image, `ns_id` CRIU's number of its netns."""

    file_id: int
    inode: int
    ns_id: int
    family: Family
    protocol: Transport
    state: str
    local: Endpoint
    peer: Endpoint | None
    dual_stack: bool
    reuse_port: bool
    uid: int


class UnixSocket(msgspec.Struct, frozen=True, kw_only=True):
    """A unix socket of an image; `name` is as bound: a path, or an abstract name that begins with NUL."""

    file_id: int
    inode: int
    ns_id: int
    kind: Literal["stream", "dgram", "seqpacket"]
    state: str
    peer_inode: int
    name: bytes
    directory: str
    deleted: bool
    external: bool = False


class RegularFile(msgspec.Struct, frozen=True, kw_only=True):
    """A regular file that a process has open or mapped; CRIU refuses a file whose size differs."""

    file_id: int
    path: str
    flags: int
    mode: int
    size_bytes: int
    mount_id: int
    build_id: bytes = b""


class InetChange(Protocol):
    """What becomes of an inet socket: its ends before and after, or `closes`: it reads as hung up."""

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


def read(images_dir: Path) -> Image:
    """files.img as raw entries."""
    return framing.read(images_dir / NAME, framing.FILES)


def inet_sockets(image: Image, criu_binary: Path | None = None) -> tuple[InetSocket, ...]:
    """Every inet socket in `image`, in its order."""
    return tuple(_inet(entry.isk) for _, entry in _of_type(image, _INET, criu_binary))


def unix_sockets(image: Image, criu_binary: Path | None = None) -> tuple[UnixSocket, ...]:
    """Every unix socket in `image`, in its order."""
    return tuple(_unix(entry.usk) for _, entry in _of_type(image, _UNIX, criu_binary))


def regular_files(image: Image, criu_binary: Path | None = None) -> tuple[RegularFile, ...]:
    """Every regular file in `image`, in its order."""
    return tuple(_regular(entry.reg) for _, entry in _of_type(image, _REGULAR, criu_binary))


def edited(
    image: Image,
    *,
    inet: Mapping[int, InetChange],
    unix: Mapping[int, bytes] | None = None,
    criu_binary: Path | None = None,
) -> Image:
    """`image` with the sockets named by file ID changed; `unix` gives new names, as bound.

    Only changed entries are encoded again, and fields this pycriu does not know stay in them. Raises
    CheckpointMismatch where `image` does not hold the sockets that should change.
    """
    entries = list(image.entries)
    left = dict(inet)
    for index, entry in _of_type(image, _INET, criu_binary) if inet else ():
        if (change := left.pop(entry.id, None)) is not None:
            _apply(entry.isk, change)
            entries[index] = entry.SerializeToString()
    for missing in left:
        raise _foreign(missing, "there is none")
    for index, entry in _of_type(image, _UNIX, criu_binary) if unix else ():
        if unix and (name := unix.get(entry.id)) is not None:
            entry.usk.name = name
            entries[index] = entry.SerializeToString()
    return Image(header=image.header, entries=tuple(entries))


def _foreign(file_id: int, what: str) -> CheckpointMismatch:
    return CheckpointMismatch(
        f"socket {file_id} of the image is not the one to change",
        details=what,
        remedy="plan the ports from this image directory again",
    )


def _of_type(image: Image, kind: int, criu_binary: Path | None) -> Iterator[tuple[int, Any]]:
    parse = load("fdinfo", criu_binary).file_entry.FromString
    # The type is field 1 and every encoder writes fields by number, so most entries need no parsing.
    wanted, typed = bytes((0x08, kind)), b"\x08"
    for index, payload in enumerate(image.entries):
        if payload.startswith(wanted) or not payload.startswith(typed):
            entry = parse(payload)
            if entry.type == kind:
                yield index, entry


def _inet(isk: Any) -> InetSocket:
    ipv6 = isk.family == AF_INET6
    connected = isk.dst_port != 0
    return InetSocket(
        file_id=isk.id,
        inode=isk.ino,
        ns_id=isk.ns_id,
        family="ipv6" if ipv6 else "ipv4",
        protocol="udp" if isk.proto == IPPROTO_UDP else "tcp",
        state=STATES[isk.state] if isk.state < len(STATES) else "UNKNOWN",
        local=Endpoint(address=_text(tuple(isk.src_addr)), port=isk.src_port),
        peer=Endpoint(address=_text(tuple(isk.dst_addr)), port=isk.dst_port) if connected else None,
        dual_stack=ipv6 and not isk.v6only,
        reuse_port=isk.opts.so_reuseport,
        uid=isk.uid if hasattr(isk, "uid") else 0,
    )


def _unix(usk: Any) -> UnixSocket:
    kinds: dict[int, Literal["stream", "dgram"]] = {SOCK_STREAM: "stream", SOCK_DGRAM: "dgram"}
    return UnixSocket(
        file_id=usk.id,
        inode=usk.ino,
        ns_id=usk.ns_id,
        kind=kinds.get(usk.type, "seqpacket"),
        state=STATES[usk.state] if usk.state < len(STATES) else "UNKNOWN",
        peer_inode=usk.peer,
        name=usk.name,
        directory=usk.name_dir,
        deleted=usk.deleted,
        external=bool(usk.uflags & _EXTERNAL),
    )


def _regular(reg: Any) -> RegularFile:
    return RegularFile(
        file_id=reg.id,
        path=reg.name,
        flags=reg.flags,
        mode=reg.mode,
        size_bytes=reg.size,
        mount_id=reg.mnt_id,
        build_id=pack(f"={len(reg.build_id)}I", *reg.build_id),
    )


def _apply(isk: Any, change: InetChange) -> None:
    old, new, old_peer, new_peer = change.old, change.new, change.old_peer, change.new_peer
    if isk.src_port != old.port or isk.dst_port != (old_peer.port if old_peer else 0):
        raise _foreign(isk.id, f"it has ports {isk.src_port} and {isk.dst_port}")
    if change.closes:
        # State CLOSE alone restores as "not connected"; shut down both ways it reads as end of file.
        isk.state, isk.shutdown = _CLOSE, _SHUTDOWN_BOTH
        isk.src_port = isk.dst_port = 0
        isk.src_addr[:] = [0] * len(isk.src_addr)
        isk.dst_addr[:] = [0] * len(isk.dst_addr)
        return
    isk.src_port = new.port
    if new.address != old.address:
        isk.src_addr[:] = _words(new.address, isk.family)
    if old_peer is not None and new_peer is not None:
        isk.dst_port = new_peer.port
        if new_peer.address != old_peer.address:
            isk.dst_addr[:] = _words(new_peer.address, isk.family)


@lru_cache(maxsize=4096)
def _text(words: tuple[int, ...]) -> str:
    # Addresses stand as u32 words that hold the bytes in network order.
    if not any(words):
        return "0.0.0.0" if len(words) == 1 else "::"
    return inet_ntop(AF_INET if len(words) == 1 else AF_INET6, pack(f"={len(words)}I", *words))


@lru_cache(maxsize=4096)
def _words(address: str, family: int) -> tuple[int, ...]:
    if family == AF_INET6 and ":" not in address:
        address = f"::ffff:{address}"
    packed = inet_pton(AF_INET6 if family == AF_INET6 else AF_INET, address)
    return unpack(f"={len(packed) // 4}I", packed)


def check_complete(image: Image, listeners: Iterable[Socket], criu: Path) -> None:
    """Raise DumpIncomplete, naming each of `listeners` that files.img lacks."""
    stored = {socket.inode for socket in inet_sockets(image, criu)}
    missing = [each for each in listeners if each.inode not in stored]
    if missing:
        raise DumpIncomplete(
            "CRIU left listeners out of the checkpoint",
            details="\n".join(f"{each.local} ({each.role.name})" for each in missing),
            remedy="try again; if it stays, please report it with the log",
        )
