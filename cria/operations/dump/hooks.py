"""The steps of a dump that run the user's hooks. Until the engine is frozen a hook may refuse the dump."""

from __future__ import annotations

import sys

from cria.model.hooks import HookCall, Stage
from cria.operations.dump.engine import take_inventory
from cria.operations.dump.state import DumpState
from cria.operations.hooks import Hooks, failure_of


def are_given(state: DumpState) -> bool:
    return bool(state.request.hooks)


def are_given_and_engine_runs_on(state: DumpState) -> bool:
    return are_given(state) and state.request.leave_running


def check(state: DumpState) -> None:
    request = state.request
    state.hooks = Hooks(request.hooks, seconds=request.hook_seconds, listener=request.listener)


def before_dump(state: DumpState) -> None:
    take_inventory(state)  # for the URL; the inventory that counts is taken after the hooks
    state.hooks.begin(_call(state, "before-dump"))


def at_still_point(state: DumpState) -> None:
    """Run the hooks before the caches are dropped: that is refused where a hook outlasted the lease."""
    state.quiesce.extend_lease(state.request.hook_seconds * len(state.hooks))
    state.hooks.ask(_call(state, "at-still-point"))


def after_resume(state: DumpState) -> None:
    state.hooks.tell(_call(state, "after-resume"))


def after_dump(state: DumpState) -> None:
    state.hooks.tell(_call(state, "after-dump"))


def dump_failed(state: DumpState) -> None:
    """Run the hooks when the engine runs on again and the exception is on its way to the caller."""
    state.hooks.tell(_call(state, "dump-failed"))


def _call(state: DumpState, stage: Stage) -> HookCall:
    published = state.inventory.api_listeners() if state.has("inventory") else ()
    return HookCall(
        stage=stage,
        operation="dump",
        checkpoint=str(state.staged.output),
        images=str(state.staged.images) if state.staged.exists else None,
        pid=state.root,
        url=published[0].local.http_url if published else None,
        leave_running=state.request.leave_running,
        error=failure_of(sys.exception()) if stage == "dump-failed" else None,
    )
