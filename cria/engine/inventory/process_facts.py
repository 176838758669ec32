"""Gather the facts about a process that tell what its sockets are for: threads, libraries, epolls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Literal

import msgspec

from cria.model.inventory import Descriptor, Process, Role

LoopKind = Literal["event loop", "Gloo", "ZMQ", "libuv", "other"]
# Libraries by a part of their path that setproctitle and the names of wheels do not change.
LIBRARIES = {
    "uvloop": "/uvloop/loop.",
    "libzmq": "libzmq",
    "libnccl": "libnccl",
    "Ray": "_raylet",
    "CUDA": "libcuda.so",
}
GLOO_THREAD = "gloo_tcp_loop"
STORE_THREADS = ("pt_tcpstore_uv", "pt_tcpstore")
ZMQ_THREAD = "ZMQbg/IO"


class Epoll(msgspec.Struct, frozen=True, kw_only=True):
    """One epoll of a process, the descriptors that it watches, and the kind of loop that these suggest."""

    fd: int
    kind: LoopKind
    watches: tuple[int, ...]


class ProcessFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One process as the rules in `cria.engine.inventory.roles` see it.

    `threads` counts threads by name, `epolls` are by the descriptor that they watch.
    """

    process: Process
    role: Role
    threads: dict[str, int]
    libraries: frozenset[str]
    epolls: dict[int, tuple[Epoll, ...]]

    def epoll_on(self, fd: int, kind: LoopKind) -> Epoll | None:
        """Return the epoll of that kind that watches `fd`, if there is one."""
        return next((epoll for epoll in self.epolls.get(fd, ()) if epoll.kind == kind), None)

    def is_watched(self, fd: int) -> bool:
        """Say whether any epoll watches `fd`."""
        return fd in self.epolls

    def has_thread(self, *prefixes: str) -> bool:
        """Say whether the name of a thread begins with one of `prefixes`."""
        return any(name.startswith(prefixes) for name in self.threads)


def gather_facts(
    process: Process,
    descriptors: Iterable[Descriptor],
    threads: Iterable[str],
    mapped_libraries: frozenset[str],
) -> ProcessFacts:
    """Return the facts about one process; `mapped_libraries` are the LIBRARIES it has mapped."""
    names = Counter(threads)
    return ProcessFacts(
        process=process,
        role=process.role,
        threads=dict(names),
        libraries=mapped_libraries,
        epolls=epolls_by_fd(find_epolls(tuple(descriptors), frozenset(names))),
    )


def libraries(paths: Iterable[str]) -> frozenset[str]:
    """Return which of LIBRARIES are among the mapped files."""
    mapped = {path for path in paths if ".so" in path}
    return frozenset(
        name for name, part in LIBRARIES.items() if any(part in path for path in mapped)
    )


def find_epolls(descriptors: tuple[Descriptor, ...], threads: frozenset[str]) -> tuple[Epoll, ...]:
    """Return the epolls among the descriptors of one process."""
    kinds = {descriptor.fd: descriptor.kind for descriptor in descriptors}
    return tuple(
        Epoll(
            fd=descriptor.fd,
            kind=_loop_kind(Counter(kinds.get(fd, "other") for fd in descriptor.watches), threads),
            watches=descriptor.watches,
        )
        for descriptor in descriptors
        if descriptor.kind == "eventpoll"
    )


def epolls_by_fd(epolls: Iterable[Epoll]) -> dict[int, tuple[Epoll, ...]]:
    """Return the epolls that watch a descriptor, for each descriptor that is watched."""
    by_fd: dict[int, tuple[Epoll, ...]] = {}
    for epoll in epolls:
        for fd in epoll.watches:
            by_fd[fd] = (*by_fd.get(fd, ()), epoll)
    return by_fd


def _loop_kind(kinds: Counter[str], threads: frozenset[str]) -> LoopKind:
    """Name a loop for what wakes it up: Gloo's a pipe, libzmq's one eventfd, uvloop's both."""
    if kinds["pipe"] and kinds["eventfd"]:
        return "event loop"
    if kinds["pipe"] and any(name.startswith(GLOO_THREAD) for name in threads):
        return "Gloo"
    if kinds["eventfd"] == 1 and any(name.startswith(ZMQ_THREAD) for name in threads):
        return "ZMQ"
    if kinds["eventfd"] and any(name.startswith(STORE_THREADS) for name in threads):
        return "libuv"
    return "other"
