"""What a restore does, in this order: the words of the lists are in the modules beside it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cria.operation import Step
from cria.operations.restore import gpu, hooks, isolation, lazy, prepare, processes, share
from cria.operations.restore.state import Restore

if TYPE_CHECKING:
    from cria.checkpoint.handle import Checkpoint
    from cria.engine.handle import Engine
    from cria.events import Listener, Timings
    from cria.operations.hooks import Hook
    from cria.operations.restore.state import Isolate, Policy, Restore

PREPARE: tuple[Step[Restore], ...] = (
    Step("open the checkpoint", prepare.open_the_checkpoint),
    Step("find CRIU", prepare.find_criu),
    Step("check it fits", prepare.check_it_fits),
    Step("choose its GPUs", gpu.choose_its_gpus, when=gpu.had_gpus),
    Step("share its memory", share.share_its_memory, when=share.is_wanted),
    Step("check it can be lazy", lazy.check_it_can_be_lazy, when=lazy.is_lazy),
    Step("plan the ports", prepare.plan_the_ports, undo=prepare.let_the_ports_go),
    Step("hold the ports", prepare.hold_the_ports, undo=prepare.let_the_ports_go),
)
BRING_UP: tuple[Step[Restore], ...] = (
    Step(
        "hooks: before-restore",
        hooks.before_restore,
        undo=hooks.restore_failed,
        when=hooks.has_hooks,
    ),
    Step("choose where it lives", isolation.choose_where_it_lives, undo=isolation.leave_the_place),
    Step("make a private view", isolation.make_a_private_view, undo=isolation.remove_the_view),
    Step("put its files back", isolation.put_its_files_back, undo=isolation.take_its_files_away),
    Step(
        "start its page server",
        lazy.start_its_page_server,
        undo=lazy.leave_the_page_server,
        when=lazy.is_lazy,
    ),
    Step(
        "restore the processes", processes.restore_the_processes, undo=processes.end_the_processes
    ),
    Step("put its memory back", processes.put_its_memory_back, when=processes.has_memory_aside),
    Step(
        "see that its memory will arrive",
        lazy.see_that_its_memory_will_arrive,
        when=lazy.is_lazy,
    ),
    # Every process exists now, none runs, and all can still be taken down without a trace.
    Step("check the ports are ours", processes.check_the_ports_are_ours),
    Step("let it run", processes.let_it_run),
    Step("tie it to its page server", lazy.tie_it_to_its_page_server, when=lazy.is_lazy),
    Step("give it its GPUs", gpu.give_it_its_gpus, when=gpu.had_gpus),
    Step("let its requests go on", processes.let_its_requests_go_on),
    Step("wait until healthy", processes.wait_until_healthy),
    Step("compare the canary", processes.compare_the_canary),
    Step("let the rest of its memory arrive", lazy.let_the_rest_arrive, when=lazy.is_lazy),
    Step("hooks: after-restore", hooks.after_restore, when=hooks.has_hooks),
)
RESTORE_STEPS = (*PREPARE, *BRING_UP)


def restore(
    checkpoint: Checkpoint | str | os.PathLike[str],
    *,
    ports: Any = None,
    wait_seconds: float = 120.0,
    isolate: Isolate = "auto",
    outside: Policy = "refuse",
    clients: Policy = "close",
    canary: bool = True,
    lazy: bool = False,
    gpus: dict[str, str] | None = None,
    gpu_seconds: float = 300.0,
    share_memory: bool = False,
    share_in: str | os.PathLike[str] | None = None,
    hooks: Iterable[Hook] = (),
    hook_seconds: float = 30.0,
    listener: Listener | None = None,
) -> Engine:
    """Restore `checkpoint` and return the running engine once it is healthy.

    `ports` is a PortPlan, or a wish for one: {8000: 8001}, "keep", "auto", "offset:1000". `clients` says
    what becomes of connections from outside to a published listener, `outside` of any other with one
    end in the checkpoint: they are refused, closed in the restored engine, or kept.
    The engine lives among the host's processes, or in pid, mount and ipc namespaces of its own: `auto`
    when a PID or path it needs is taken, `always`, or `never`. `net` gives it a network namespace too: no
    port is rewritten, and connections to its published ports are carried inside. `gpus` says which GPU
    takes the place of which, by UUID; each copy from the host may take `gpu_seconds`. With
    `share_memory` clones hold large parts of their memory once, and those are not copied
    (docs/how-to/shared-memory.md); `share_in` is another place for it than beside the checkpoint. `hooks` are programs or
    functions that are run at the stages of hooks/README.md, a program for `hook_seconds` at most.
    A `lazy` engine runs while its memory still arrives (docs/how-to/lazy.md).
    Raises a CriaError; then nothing of the engine runs and the checkpoint is as it was.
    """
    from cria.operation import run_steps
    from cria.operations.restore.state import Restore

    work = Restore(
        source=checkpoint,
        wish=ports,
        wait_seconds=wait_seconds,
        isolate=isolate,
        policies={"outside": outside, "clients": clients},
        wants_canary=canary,
        wants_lazy=lazy,
        wants_gpus=gpus or {},
        gpu_seconds=gpu_seconds,
        share_memory=share_memory or share_in is not None,
        share_in=Path(share_in) if share_in is not None else None,
        wants_hooks=tuple(hooks),
        hook_seconds=hook_seconds,
        listener=listener,
    )
    timings = run_steps("restore", RESTORE_STEPS, work, listener=listener, stopwatch=work.stopwatch)
    return engine_of(work, timings)


def engine_of(work: Restore, timings: Timings) -> Engine:
    """The engine that a finished restore has brought up."""
    from cria.engine.handle import Engine

    published = work.checkpoint.manifest.published
    return Engine(
        pid=work.root,
        url=work.url,
        ports={old.port: work.reached_at(old).port for old in published},
        ports_moved=len(work.plan.moved_ports),
        timings=timings,
        shared_memory=work.shared,
    )
