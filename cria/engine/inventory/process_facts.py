"""What the kernel shows of a process that tells what its sockets are for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Literal

import msgspec

from cria.model.inventory import Descriptor, Process, Role

Watcher = Literal["event loop", "Gloo", "ZMQ", "libuv", "other"]
# Libraries by a part of their path: setproctitle and wheels change names, not these.
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
    """One epoll of a process and whose loop it looks like, by the kinds of what it watches."""

    fd: int
    kind: Watcher
    watches: tuple[int, ...]


class ProcessFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One process as the rules in `cria.engine.inventory.roles` see it; `watchers` are its epolls by watched fd."""

    process: Process
    role: Role
    threads: dict[str, int]
    libraries: frozenset[str]
    watchers: dict[int, tuple[Epoll, ...]]

    def watching(self, fd: int, kind: Watcher) -> Epoll | None:
        """Return the epoll of that kind which watches `fd`, if there is one."""
        return next((e for e in self.watchers.get(fd, ()) if e.kind == kind), None)

    def watched(self, fd: int) -> bool:
        return fd in self.watchers

    def has_thread(self, *prefixes: str) -> bool:
        return any(name.startswith(prefixes) for name in self.threads)


def gather_facts(
    process: Process,
    descriptors: Iterable[Descriptor],
    threads: Iterable[str],
    mapped: frozenset[str],
) -> ProcessFacts:
    """Gather the facts of one process; `mapped` are the LIBRARIES it has mapped."""
    names = Counter(threads)
    return ProcessFacts(
        process=process,
        role=process.role,
        threads=dict(names),
        libraries=mapped,
        watchers=epolls_by_fd(find_epolls(tuple(descriptors), frozenset(names))),
    )


def libraries(paths: Iterable[str]) -> frozenset[str]:
    """Return which of LIBRARIES are among the mapped files."""
    seen = {path for path in paths if ".so" in path}
    return frozenset(name for name, part in LIBRARIES.items() if any(part in path for path in seen))


def find_epolls(descriptors: tuple[Descriptor, ...], threads: frozenset[str]) -> tuple[Epoll, ...]:
    """Return the epolls among the descriptors of one process."""
    kinds = {each.fd: each.kind for each in descriptors}
    return tuple(
        Epoll(
            fd=each.fd,
            kind=_watcher(Counter(kinds.get(fd, "other") for fd in each.watches), threads),
            watches=each.watches,
        )
        for each in descriptors
        if each.kind == "eventpoll"
    )


def epolls_by_fd(found: Iterable[Epoll]) -> dict[int, tuple[Epoll, ...]]:
    """Map each watched descriptor to the epolls that watch it."""
    by_fd: dict[int, tuple[Epoll, ...]] = {}
    for epoll in found:
        for fd in epoll.watches:
            by_fd[fd] = (*by_fd.get(fd, ()), epoll)
    return by_fd


def _watcher(kinds: Counter[str], threads: frozenset[str]) -> Watcher:
    """Name the loop by what wakes it: Gloo has a pipe, libzmq one eventfd, uvloop both."""
    if kinds["pipe"] and kinds["eventfd"]:
        return "event loop"
    if kinds["pipe"] and any(name.startswith(GLOO_THREAD) for name in threads):
        return "Gloo"
    if kinds["eventfd"] == 1 and any(name.startswith(ZMQ_THREAD) for name in threads):
        return "ZMQ"
    if kinds["eventfd"] and any(name.startswith(STORE_THREADS) for name in threads):
        return "libuv"
    return "other"
