"""The steps of a lazy restore: a page server is started before the engine, and outlives the restore."""

from __future__ import annotations

from cria.errors import UsageError
from cria.memory.lazy.client import PageServerClient
from cria.model.manifest import MEMORY
from cria.operations.checks import preflight
from cria.operations.restore.state import OpenedState, RestoreState
from cria.system.procfs import tree


def check(state: OpenedState) -> None:
    """Refuse a lazy restore that gains nothing or cannot work, before anything is changed."""
    checkpoint = state.checkpoint
    reasons = (
        (
            checkpoint.manifest.gpu_state is not None,
            "the engine had GPUs: their memory is copied as a whole before the engine runs",
        ),
        ((checkpoint.path / MEMORY).is_dir(), "the memory of the checkpoint is compressed"),
        (
            state.request.shares_memory,
            "memory that is shared with other clones is not copied at all",
        ),
    )
    for holds, reason in reasons:
        if holds:
            raise UsageError(
                f"{checkpoint.path} cannot be restored with --lazy",
                details=reason,
                remedy="leave out --lazy",
                docs="docs/how-to/lazy.md",
            )
    preflight.lazy()


def start_page_server(state: RestoreState) -> None:
    state.page_server = PageServerClient(
        state.view,
        state.checkpoint.path,
        pids=state.checkpoint.criu_images.pids,
        criu=state.client.program,
    )


def close_page_server(state: RestoreState) -> None:
    """Report why the page server failed, if it did. It ends by itself, as its engine has ended."""
    if state.has("page_server"):
        failure = state.page_server.failure()
        if failure is not None:
            state.warn(f"{failure}; see {state.page_server.log}")
        state.page_server.close()


def check_page_server(state: RestoreState) -> int:
    """Return the bytes that the page server will load. Raises RestoreFailed where it cannot."""
    return state.page_server.report_rebuilt(process.pid for process in tree(state.root))


def attach_page_server(state: RestoreState) -> None:
    """Let the page server trace the processes: until they ran, CRIU traced them itself."""
    state.page_server.report_running()


def load_remaining_memory(state: RestoreState) -> None:
    state.page_server.report_answered()
    state.page_server.close()
