"""CRIU's image messages, as far as cria reads or edits them: the types, and the classes of pycriu.

Source of every field: criu/images/*.proto. A field that a pycriu lacks has its default here; a field that
cria does not know stays in the message when it is written again.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableSequence, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, Protocol

from cria.criu.images.framing import damaged
from cria.criu.messages import M_co, Message, MessageClass, load


class SocketOptions(Protocol):
    """sk_opts_entry."""

    so_reuseport: bool


class InetEntry(Protocol):
    """inet_sk_entry: addresses as 32-bit words in network order, ports in host order."""

    id: int
    ino: int
    ns_id: int
    family: int
    proto: int
    state: int
    shutdown: int
    src_port: int
    dst_port: int
    src_addr: MutableSequence[int]
    dst_addr: MutableSequence[int]
    v6only: bool
    opts: SocketOptions


class UnixEntry(Protocol):
    """unix_sk_entry."""

    id: int
    ino: int
    type: int
    state: int
    name: bytes
    deleted: bool
    uflags: int


class SignalOwner(Protocol):
    """fown_entry."""

    uid: int
    euid: int
    signum: int
    pid_type: int
    pid: int


class RegularEntry(Protocol):
    """reg_file_entry."""

    id: int
    name: str
    flags: int
    pos: int
    size: int
    mode: int
    build_id: Sequence[int]
    fown: SignalOwner


class FileEntry(Message, Protocol):
    """file_entry: one of the three below, by `type`, or another kind of file."""

    type: int
    id: int
    isk: InetEntry
    usk: UnixEntry
    reg: RegularEntry


class VmaEntry(Message, Protocol):
    """vma_entry."""

    start: int
    end: int
    pgoff: int
    shmid: int
    prot: int
    flags: int
    status: int
    madv: int
    fdflags: int


class MmEntry(Message, Protocol):
    """mm_entry."""

    mm_start_brk: int
    mm_brk: int
    vmas: Sequence[VmaEntry]


class PagemapHead(Message, Protocol):
    """pagemap_head."""

    pages_id: int


class PagemapEntry(Message, Protocol):
    """pagemap_entry: before CRIU 4.1 without `nr_pages`."""

    vaddr: int
    compat_nr_pages: int
    nr_pages: int
    in_parent: bool
    flags: int


class InventoryEntry(Protocol):
    """inventory_entry."""

    network_lock_method: int
    dump_criu_run_id: str
    tcp_close: bool


class PstreeEntry(Protocol):
    """pstree_entry."""

    pid: int
    ppid: int
    threads: Sequence[int]


class RemapEntry(Protocol):
    """remap_file_path_entry: `orig_id` is the ID in files.img of a file that had no path at the dump."""

    orig_id: int


class TcpStreamEntry(Protocol):
    """tcp_stream_entry: the lengths in bytes of the queues, whose content follows the entry."""

    inq_len: int
    outq_len: int


class _TaskCore(Protocol):
    comm: str


class CoreEntry(Protocol):
    """core_entry."""

    mtype: int
    tc: _TaskCore


class IdsEntry(Protocol):
    """task_kobj_ids_entry."""

    files_id: int


class FdinfoEntry(Protocol):
    """fdinfo_entry."""

    id: int


class _Lazy(Generic[M_co]):
    """A message class of a module of pycriu, which is loaded when the class is first used."""

    def __init__(self, module: str, name: str) -> None:
        self._module = module
        self._name = name

    def __set_name__(self, _owner: type, attribute: str) -> None:
        self._attribute = attribute

    def __get__(self, schema: Schema, _owner: type) -> MessageClass[M_co]:
        message: MessageClass[M_co] = getattr(load(self._module, schema.program), self._name)
        schema.__dict__[self._attribute] = message  # where it is looked up first from now on
        return message


class Schema:
    """The message classes of the pycriu that belongs to the CRIU `program`.

    Its modules are loaded one by one: the package with all of them takes longer to load than a small
    restore.
    """

    def __init__(self, program: Path | None = None) -> None:
        self.program = program

    file_entry = _Lazy[FileEntry]("fdinfo", "file_entry")
    fdinfo_entry = _Lazy[FdinfoEntry]("fdinfo", "fdinfo_entry")
    mm_entry = _Lazy[MmEntry]("mm", "mm_entry")
    pagemap_head = _Lazy[PagemapHead]("pagemap", "pagemap_head")
    pagemap_entry = _Lazy[PagemapEntry]("pagemap", "pagemap_entry")
    inventory_entry = _Lazy[InventoryEntry]("inventory", "inventory_entry")
    pstree_entry = _Lazy[PstreeEntry]("pstree", "pstree_entry")
    remap_entry = _Lazy[RemapEntry]("remap_file_path", "remap_file_path_entry")
    tcp_stream_entry = _Lazy[TcpStreamEntry]("tcp_stream", "tcp_stream_entry")
    core_entry = _Lazy[CoreEntry]("core", "core_entry")
    ids_entry = _Lazy[IdsEntry]("core", "task_kobj_ids_entry")


@contextmanager
def decoding(name: object) -> Iterator[None]:
    """Turn an entry that is no message of its kind into CheckpointDamaged; errors call the image `name`."""
    # protobuf takes 15 ms to load, and is loaded by the time an image is decoded.
    from google.protobuf.message import DecodeError

    try:
        yield
    except (DecodeError, ValueError) as error:
        raise damaged(name, str(error)) from error
