"""What an engine holds, as plain structs: taken live from the kernel, and stored with a checkpoint."""

from __future__ import annotations

from typing import Literal

import msgspec

from cria.model.socket import Endpoint, InetSocket

Confidence = Literal["certain", "likely", "unknown"]
DescriptorKind = Literal[
    "socket", "pipe", "fifo", "file", "directory", "device", "memfd", "eventfd", "eventpoll",
    "io_uring", "inotify", "timerfd", "signalfd", "pidfd", "other",
]  # fmt: skip


class Holder(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """Who has a file or socket open."""

    pid: int
    fd: int


class Role(msgspec.Struct, frozen=True, kw_only=True):
    """What something is for, how sure that is, and what it was read from."""

    name: str
    confidence: Confidence
    evidence: tuple[str, ...] = ()


UNKNOWN = Role(name="unknown", confidence="unknown")


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes of a process by kind, as /proc/PID/status counts them.

    `anonymous` is what a checkpoint has to store. `zero` is how much of it is estimated to be pages
    full of zeros, from `sampled_pages` looked at; None where nobody looked.
    """

    resident: int = 0
    anonymous: int = 0
    file: int = 0
    shared: int = 0
    swapped: int = 0
    zero: int | None = None
    sampled_pages: int = 0


class Process(msgspec.Struct, frozen=True, kw_only=True):
    """One process of the tree; `started` is Unix time in seconds, namespaces are inode numbers."""

    pid: int
    parent: int
    session: int
    uid: int
    started: float
    command: tuple[str, ...]
    name: str
    threads: int
    namespaces: dict[str, int]
    state: str = ""
    cgroup: str = ""
    memory: Memory = Memory()
    role: Role = UNKNOWN


class Descriptor(msgspec.Struct, frozen=True, kw_only=True):
    """One open descriptor: `target` is the text of its link in /proc/PID/fd.

    `device` is the file system's for a file and the device's own for a device node. `flags` (octal
    of open(2)) is None where it was not read; `watches` are the descriptors an epoll watches.
    `path` is the name at the last look, also when `deleted`; `links` counts the names that are left.
    """

    pid: int
    fd: int
    kind: DescriptorKind
    target: str
    inode: int = 0
    device: int = 0
    flags: int | None = None
    deleted: bool = False
    path: str | None = None
    links: int = 0
    watches: tuple[int, ...] = ()
    locks: tuple[str, ...] = ()


class Socket(InetSocket, frozen=True, kw_only=True):
    """A TCP or UDP socket of an engine, as sock_diag shows it.

    `backlog` is set for LISTEN only. For LISTEN `receive_queue` counts connections that are not accepted
    yet, otherwise both queues count bytes. `peer_holders` is empty when the other end is outside the
    process tree.
    """

    netns: int
    inode: int
    uid: int
    backlog: int | None = None
    receive_queue: int = 0
    send_queue: int = 0
    holders: tuple[Holder, ...] = ()
    peer_holders: tuple[Holder, ...] = ()
    role: Role = UNKNOWN


class UnixSocket(msgspec.Struct, frozen=True, kw_only=True):
    """A unix socket; an abstract name begins with '@'."""

    kind: Literal["stream", "dgram", "seqpacket"]
    state: str
    path: str | None = None
    inode: int
    peer_inode: int | None = None
    netns: int = 0
    backlog: int | None = None
    receive_queue: int = 0
    holders: tuple[Holder, ...] = ()
    peer_holders: tuple[Holder, ...] = ()
    role: Role = UNKNOWN


class SharedFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file on a memory file system (/dev/shm) that processes of the engine map or hold open.

    `allocated_bytes` is what it really takes: such files are sparse. `path` is None once unlinked;
    `name` is what it was last called.
    """

    path: str | None
    device: int
    inode: int
    size_bytes: int
    allocated_bytes: int
    name: str = ""
    pids: tuple[int, ...] = ()
    role: Role = UNKNOWN


class Topology(msgspec.Struct, frozen=True, kw_only=True):
    """How an engine is laid out, read from the titles of its processes, and what it serves."""

    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    api_servers: int = 0
    engine_cores: int = 0
    workers: int = 0
    model: str | None = None
    url: str | None = None


class Member(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """One rank of a process group: the process and the listener it opened for the group."""

    pid: int
    listener: Endpoint
    fd: int


class ProcessGroup(msgspec.Struct, frozen=True, kw_only=True):
    """A process group of torch.distributed, as far as the kernel shows it: members joined by pairs.

    A group of one rank has a listener and no pair. The groups of a process are numbered in the order
    in which they were made; torch's own names for them are not visible from outside.
    """

    number: int
    backend: str
    members: tuple[Member, ...]


class NamedGroup(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """A process group by torch's own name, with the global ranks of its members: the engine told it."""

    name: str
    backend: str
    ranks: tuple[int, ...]


class Inventory(msgspec.Struct, frozen=True, kw_only=True):
    """Everything known of one engine at one moment; the root process comes first."""

    taken: float
    is_engine: bool
    processes: tuple[Process, ...]
    sockets: tuple[Socket, ...] = ()
    unix_sockets: tuple[UnixSocket, ...] = ()
    shared_files: tuple[SharedFile, ...] = ()
    descriptors: tuple[Descriptor, ...] = ()
    topology: Topology = Topology()
    groups: tuple[ProcessGroup, ...] = ()
    named_groups: tuple[NamedGroup, ...] = ()

    @property
    def root(self) -> Process:
        return self.processes[0]

    def listeners(self) -> tuple[Socket, ...]:
        return tuple(s for s in self.sockets if s.state == "LISTEN")

    def api_listeners(self) -> tuple[Socket, ...]:
        """The listeners that clients of the engine know: its HTTP API."""
        return tuple(s for s in self.listeners() if s.role.name == "HTTP API")

    def checkpoint_bytes(self) -> int:
        """About how large the images of a checkpoint become: anonymous memory and shared files."""
        anonymous = sum(p.memory.anonymous + p.memory.swapped for p in self.processes)
        return anonymous + sum(file.allocated_bytes for file in self.shared_files)

    def zero_bytes(self) -> int | None:
        """About how much of that is pages full of zeros; None where nobody looked."""
        zero = [p.memory.zero for p in self.processes if p.memory.zero is not None]
        return sum(zero) if zero else None
