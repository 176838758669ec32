"""All ranks of an engine meet, or all learn that they do not, and nothing is broken by it.

A barrier of Gloo that runs into its timeout closes its connections for ever ("Application timeout caused
pair closure"): the engine would serve on, and could never be dumped. So there is a roll call first, over the
store through which the ranks once found each other, and a barrier only when every rank has said yes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

import torch.distributed as dist

POLL_SECONDS = 0.01
TELL_SECONDS = 0.3
BARRIER_SECONDS = 600.0  # every rank is on its way to it
MEET, GIVEN_UP = "meet", "given up"
_COMM = "/proc/self/comm"


class RanksMissing(Exception):
    """Some rank did not come in time; its text says which."""


def barrier(token: str, seconds: float) -> int:
    """Wait in every Gloo group until all its ranks are there; returns how many groups there are.

    A collective of a rank that is here has ended, so after this nothing is on the wire. `token` is the
    same in all ranks, and another each time. Raises RanksMissing, in all ranks.
    """
    shared = [group for group, _, ranks in process_groups() if len(ranks) > 1]
    gloo = [group for group in shared if dist.get_backend(group) == "gloo"]
    if shared:
        presence_check(rendezvous_store(), token, seconds)
    for group in gloo:  # made in the same order in all ranks, so nobody waits crosswise
        dist.monitored_barrier(
            group, timeout=timedelta(seconds=BARRIER_SECONDS), wait_all_ranks=True
        )
    return len(gloo)


def rendezvous_store() -> dist.Store:
    """The store through which the ranks once found each other.

    A FileStore reads on from where it was: of a file that something removed (tmpfiles.d(5) clears /tmp) and
    that a rank made again it sees nothing. So it is opened anew.
    """
    store = unwrap(dist.distributed_c10d._get_default_store())
    return dist.FileStore(store.path) if isinstance(store, dist.FileStore) else store


def presence_check(store: dist.Store, token: str, seconds: float) -> None:
    """Say that this rank is here, and wait for the others. The first to decide decides for all. Raises RanksMissing."""
    me, names = dist.get_rank(), [f"cria/{token}/{r}" for r in range(dist.get_world_size())]
    store.set(names[me], "here")
    begin = time.monotonic()
    with told() as tell:
        while missing := [rank for rank, name in enumerate(names) if not store.check([name])]:
            waited = time.monotonic() - begin
            if waited > seconds:
                break
            if waited > TELL_SECONDS:
                tell(missing)
            time.sleep(POLL_SECONDS)
    verdict = store.compare_set(f"cria/{token}", "", GIVEN_UP if missing else MEET)
    if verdict.decode() != MEET:
        who = (
            f"rank {_row(missing)} did not come" if missing else "it came after the others gave up"
        )
        raise RanksMissing(f"{who} within {seconds:g} s")


@contextmanager
def told() -> Iterator[Callable[[list[int]], None]]:
    """While a rank waits its process is named for whom it waits for: where an engine hangs, that can be seen."""
    with open(_COMM) as file:  # noqa: PTH123
        before = file.read().rstrip("\n")
    try:
        yield lambda missing: _name(f"waits for {_row(missing)}")
    finally:
        _name(before)


def _name(name: str) -> None:
    with suppress(OSError), open(_COMM, "w") as file:  # noqa: PTH123 - proc(5): 15 bytes are kept
        file.write(name)


def _row(ranks: list[int]) -> str:
    return ",".join(map(str, ranks))


def process_groups() -> Iterator[tuple[dist.ProcessGroup, str, list[int]]]:
    """The process groups of this rank: each with its name and its ranks, in the order they were made."""
    if not dist.is_initialized():
        return
    world = dist.distributed_c10d._world
    for group in world.pg_map:
        yield group, world.pg_names[group], sorted(world.pg_group_ranks[group])


def file_stores() -> list[str]:
    """The files by which the ranks found each other, as this rank opens them for each new group."""
    if not dist.is_initialized():
        return []
    used = (unwrap(store) for _, store in dist.distributed_c10d._world.pg_map.values())
    return sorted({store.path for store in used if isinstance(store, dist.FileStore)})


def unwrap(store: dist.Store) -> dist.Store:
    """What the prefixes are put before."""
    while isinstance(store, dist.PrefixStore):
        store = store.underlying_store
    return store
