"""A barrier of all ranks of an engine that breaks nothing when a rank does not come.

A barrier of Gloo that runs into its timeout closes its connections for ever ("Application timeout caused pair
closure"): the engine would go on serving, but could never be dumped again. So the ranks first check that all are
present, over the store through which they found each other, and enter the barrier only when all are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

import torch.distributed as dist

POLL_SECONDS = 0.01
SHOW_SECONDS = 0.3
BARRIER_SECONDS = 600.0  # every rank is on its way to it
ALL_PRESENT, GIVEN_UP = "all present", "given up"
_COMM = "/proc/self/comm"


class RanksMissing(Exception):
    """Some rank did not come in time; the text says which."""


def barrier(token: str, seconds: float) -> int:
    """Wait in every Gloo group for all of its ranks, and return the number of these groups.

    A collective that a present rank took part in has ended, so nothing is on the wire afterwards. `token` is
    the same in all ranks, and another for each barrier. All ranks raise RanksMissing when one does not come
    within `seconds`.
    """
    shared = [group for group, _, ranks in process_groups() if len(ranks) > 1]
    gloo = [group for group in shared if dist.get_backend(group) == "gloo"]
    if shared:
        presence_check(rendezvous_store(), token, seconds)
    for group in gloo:  # in the order in which they were made, the same in all ranks: no deadlock
        dist.monitored_barrier(
            group, timeout=timedelta(seconds=BARRIER_SECONDS), wait_all_ranks=True
        )
    return len(gloo)


def rendezvous_store() -> dist.Store:
    """Return the store through which the ranks found each other.

    A FileStore reads on from where it was: when the file is removed (tmpfiles.d(5) clears /tmp) and another rank
    makes it again, it sees nothing of it. So a FileStore is opened again.
    """
    store = unwrap(dist.distributed_c10d._get_default_store())
    return dist.FileStore(store.path) if isinstance(store, dist.FileStore) else store


def presence_check(store: dist.Store, token: str, seconds: float) -> None:
    """Say that this rank is present, and wait for all others. Raises RanksMissing.

    The first rank that decides does so for all.
    """
    own, names = dist.get_rank(), [f"cria/{token}/{r}" for r in range(dist.get_world_size())]
    store.set(names[own], "here")
    begin = time.monotonic()
    with shown_in_process_name() as show:
        while missing := [rank for rank, name in enumerate(names) if not store.check([name])]:
            waited = time.monotonic() - begin
            if waited > seconds:
                break
            if waited > SHOW_SECONDS:
                show(missing)
            time.sleep(POLL_SECONDS)
    verdict = store.compare_set(f"cria/{token}", "", GIVEN_UP if missing else ALL_PRESENT)
    if verdict.decode() != ALL_PRESENT:
        reason = (
            f"rank {_joined(missing)} did not come"
            if missing
            else "this rank came after the others gave up"
        )
        raise RanksMissing(f"{reason} within {seconds:g} s")


@contextmanager
def shown_in_process_name() -> Iterator[Callable[[list[int]], None]]:
    """Name this process for the ranks that it waits for, so that one sees from outside where an engine hangs.

    `cria dump` reads the name (cria.engine.health), also of engines with an older agent.
    """
    with open(_COMM) as file:  # noqa: PTH123
        before = file.read().rstrip("\n")
    try:
        yield lambda missing: _set_name(f"waits for {_joined(missing)}")
    finally:
        _set_name(before)


def _set_name(name: str) -> None:
    with suppress(OSError), open(_COMM, "w") as file:  # noqa: PTH123 - proc(5): 15 bytes are kept
        file.write(name)


def _joined(ranks: list[int]) -> str:
    return ",".join(map(str, ranks))


def process_groups() -> Iterator[tuple[dist.ProcessGroup, str, list[int]]]:
    """Yield the process groups of this rank, each with its name and its ranks, in the order they were made."""
    if not dist.is_initialized():
        return
    world = dist.distributed_c10d._world
    for group in world.pg_map:
        yield group, world.pg_names[group], sorted(world.pg_group_ranks[group])


def file_stores() -> list[str]:
    """Return the files through which the ranks found each other, and which they open again for each new group."""
    if not dist.is_initialized():
        return []
    stores = (unwrap(store) for _, store in dist.distributed_c10d._world.pg_map.values())
    return sorted({store.path for store in stores if isinstance(store, dist.FileStore)})


def unwrap(store: dist.Store) -> dist.Store:
    """Return the store below all PrefixStores."""
    while isinstance(store, dist.PrefixStore):
        store = store.underlying_store
    return store
