"""Memory that arrives while the engine runs: its page server is started before it, and outlives the restore."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cria.operations.restore.state import Restore, Source


def is_lazy(work: Source) -> bool:
    return work.wants_lazy


def check_it_can_be_lazy(work: Source) -> None:
    """What gains nothing by being lazy, or was never seen to work, is refused before anything is touched."""
    from cria.errors import UsageError
    from cria.operations.checks import preflight
    from cria.operations.restore.processes import has_memory_aside

    for reason, holds in (
        (
            "it had GPUs: their memory is copied as a whole before it runs",
            work.checkpoint.manifest.gpu_state,
        ),
        ("its memory is compressed", has_memory_aside(work)),
        ("its memory is shared with other clones, and is not copied at all", work.share_memory),
    ):
        if holds:
            raise UsageError(
                f"{work.checkpoint.path} cannot be restored with --lazy",
                details=reason,
                remedy="leave out --lazy",
                docs="docs/how-to/lazy.md",
            )
    preflight.lazy()


def start_its_page_server(work: Restore) -> None:
    from cria.criu.images import memory
    from cria.memory.lazy.client import PageServer

    assert work.view is not None
    work.page_server = PageServer(
        work.view,
        work.checkpoint.path,
        pids=memory.pids(work.view),
        criu=work.client.criu,
    )


def leave_the_page_server(work: Restore) -> None:
    """What it served has ended by now, so it ends too."""
    from cria.events import Warned

    if work.page_server is None:
        return
    why = work.page_server.failure()
    if why is not None and work.listener is not None:
        work.listener(Warned(message=f"{why}; see {work.page_server.log}"))
    work.page_server.close()


def see_that_its_memory_will_arrive(work: Restore) -> int:
    from cria.system.procfs import tree

    missing: int = work.page_server.rebuilt(process.pid for process in tree(work.root))
    return missing


def tie_it_to_its_page_server(work: Restore) -> None:
    """Only now: until here CRIU itself was tracing the processes."""
    work.page_server.running()


def let_the_rest_arrive(work: Restore) -> None:
    work.page_server.answered()
    work.page_server.close()
