"""The engine runs again: it goes on, it is healthy, it computes what it computed before."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cria.restore.work import Restore


def let_its_requests_go_on(work: Restore) -> None:
    """An engine that was quiesced for its dump wakes up paused."""
    from cria.engine import quiesce

    quiesced = work.checkpoint.manifest.quiesced
    if quiesced is not None:
        quiesce.resume_restored(work.root, quiesced, seconds=work.wait_seconds)


def wait_until_healthy(work: Restore) -> None:
    from cria.engine import health

    published = work.checkpoint.manifest.published
    if published:
        work.url = health.url(work.reached_at(published[0]))
        health.wait_until_healthy(work.url, work.root, seconds=work.wait_seconds)


def compare_the_canary(work: Restore) -> None:
    """Before anyone is told the url: the engine computes what it computed before its dump."""
    from cria.engine import canary

    recorded = work.checkpoint.manifest.canary
    if recorded is not None and work.url is not None and work.wants_canary:
        canary.compare(work.url, recorded, seconds=work.wait_seconds)
