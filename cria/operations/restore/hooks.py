"""The steps of a restore that run the user's hooks. Before anything is started a hook may refuse it."""

from __future__ import annotations

import sys

from cria.model.hooks import HookCall, Stage
from cria.operations.hooks import Hooks, failure_of
from cria.operations.restore.state import RestoreState


def before_restore(state: RestoreState) -> None:
    request = state.request
    state.hooks = Hooks(request.hooks, seconds=request.hook_seconds, listener=request.listener)
    state.hooks.begin(_call(state, "before-restore"))


def after_restore(state: RestoreState) -> None:
    state.hooks.tell(_call(state, "after-restore"))


def restore_failed(state: RestoreState) -> None:
    """Run the hooks when nothing of the engine runs and the exception is on its way to the caller."""
    if state.has("hooks"):
        state.hooks.tell(_call(state, "restore-failed"))


def _call(state: RestoreState, stage: Stage) -> HookCall:
    """Describe the stage. The URL is known before the engine runs: its port is planned and reserved."""
    published = state.checkpoint.manifest.api_endpoints
    return HookCall(
        stage=stage,
        operation="restore",
        checkpoint=str(state.checkpoint.path),
        images=str(state.checkpoint.images),
        pid=state.root or None,
        url=state.host_endpoint(published[0]).http_url if published else None,
        ports={str(old.port): state.host_endpoint(old).port for old in published},
        clone=state.clone,
        error=failure_of(sys.exception()) if stage == "restore-failed" else None,
    )
