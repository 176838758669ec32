"""What a dump tells the user's hooks, and when; before the engine is frozen they may refuse it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from cria.model.manifest import IMAGES
from cria.operations.dump.engine import take_its_inventory

if TYPE_CHECKING:
    from cria.model.hooks import HookCall, Stage
    from cria.operations.dump.state import Dump


def has_hooks(work: Dump) -> bool:
    return bool(work.wants_hooks)


def has_hooks_and_lives_on(work: Dump) -> bool:
    return bool(work.wants_hooks) and work.leave_running


def check_the_hooks(work: Dump) -> None:
    from cria.operations.hooks import Hooks

    work.hooks = Hooks(work.wants_hooks, seconds=work.hook_seconds, listener=work.listener)


def before_dump(work: Dump) -> None:
    """Its url is in the inventory, which is taken anew afterwards."""
    assert work.hooks is not None
    take_its_inventory(work)
    work.hooks.begin(_call(work, "before-dump"))


def at_still_point(work: Dump) -> None:
    """Before the caches are dropped: that is refused if a hook outlasted the lease of the pause."""
    assert work.hooks is not None and work.still is not None
    work.still.extend_lease(work.hook_seconds * len(work.wants_hooks))
    work.hooks.ask(_call(work, "at-still-point"))


def after_resume(work: Dump) -> None:
    assert work.hooks is not None
    work.hooks.tell(_call(work, "after-resume"))


def after_dump(work: Dump) -> None:
    assert work.hooks is not None
    work.hooks.tell(_call(work, "after-dump"))


def dump_failed(work: Dump) -> None:
    """The engine runs on by now; the exception that ended the dump is on its way to the caller."""
    assert work.hooks is not None
    work.hooks.tell(_call(work, "dump-failed"))


def _call(work: Dump, stage: Stage) -> HookCall:
    from cria.engine import health
    from cria.model.hooks import HookCall
    from cria.operations.hooks import why

    place = work.output if work.published else work.staged
    published = work.inventory.published()
    return HookCall(
        stage=stage,
        operation="dump",
        checkpoint=str(work.output),
        images=str(place / IMAGES) if place else None,
        pid=work.root,
        url=health.url(published[0].local) if published else None,
        leave_running=work.leave_running,
        error=why(sys.exception()) if stage == "dump-failed" else None,
    )
