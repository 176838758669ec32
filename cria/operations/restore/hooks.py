"""What a restore tells the user's hooks, and when; before anything is started they may refuse it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cria.model.hooks import HookCall, Stage
    from cria.operations.restore.state import Restore


def has_hooks(work: Restore) -> bool:
    return bool(work.wants_hooks)


def before_restore(work: Restore) -> None:
    from cria.operations.hooks import Hooks

    work.hooks = Hooks(work.wants_hooks, seconds=work.hook_seconds, listener=work.listener)
    work.hooks.begin(_call(work, "before-restore"))


def after_restore(work: Restore) -> None:
    assert work.hooks is not None
    work.hooks.tell(_call(work, "after-restore"))


def restore_failed(work: Restore) -> None:
    """Nothing of it runs by now; the exception that ended the restore is on its way to the caller."""
    if work.hooks is not None:
        work.hooks.tell(_call(work, "restore-failed"))


def _call(work: Restore, stage: Stage) -> HookCall:
    """The url is known before the engine is: its port is planned and held."""
    from cria.engine import health
    from cria.model.hooks import HookCall
    from cria.operations.hooks import why

    published = work.checkpoint.manifest.published
    return HookCall(
        stage=stage,
        operation="restore",
        checkpoint=str(work.checkpoint.path),
        images=str(work.checkpoint.images),
        pid=work.root or None,
        url=health.url(work.reached_at(published[0])) if published else None,
        ports={str(old.port): work.reached_at(old).port for old in published},
        clone=work.clone,
        error=why(sys.exception()) if stage == "restore-failed" else None,
    )
