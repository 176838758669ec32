"""Restore a checkpoint: the list of steps, in order. What each does is in the modules beside this one."""

from __future__ import annotations

from cria.engine.handle import Engine
from cria.events import Timings
from cria.operation import Step, run_steps
from cria.operations.restore import gpu, hooks, isolation, lazy, prepare, processes, share
from cria.operations.restore.state import Restore, Source
from cria.requests import RestoreRequest

# What the clones of one restore do once for all of them.
OPEN_STEPS: tuple[Step[Source], ...] = (
    Step("open-checkpoint", "open checkpoint", prepare.open_the_checkpoint),
    Step("find-criu", "find CRIU", prepare.find_criu),
    Step("check-checkpoint", "check that the checkpoint fits this host", prepare.check_it_fits),
    Step("choose-gpus", "choose GPUs", gpu.choose_its_gpus, when=gpu.had_gpus),
    Step(
        "build-backing-store",
        "build backing store of shared memory",
        share.share_its_memory,
        when=share.is_wanted,
    ),
    Step("check-lazy", "check lazy restore", lazy.check_it_can_be_lazy, when=lazy.is_lazy),
)
PORT_STEPS: tuple[Step[Restore], ...] = (
    Step("plan-ports", "plan ports", prepare.plan_the_ports, undo=prepare.let_the_ports_go),
    Step("reserve-ports", "reserve ports", prepare.hold_the_ports, undo=prepare.let_the_ports_go),
)
START_STEPS: tuple[Step[Restore], ...] = (
    Step(
        "hooks-before-restore",
        "run hooks: before-restore",
        hooks.before_restore,
        undo=hooks.restore_failed,
        when=hooks.has_hooks,
    ),
    Step(
        "choose-namespaces",
        "choose namespaces",
        isolation.choose_where_it_lives,
        undo=isolation.leave_the_place,
    ),
    Step(
        "prepare-images",
        "prepare images with new ports",
        isolation.make_a_private_view,
        undo=isolation.remove_the_view,
    ),
    Step(
        "put-back-files",
        "put saved files back",
        isolation.put_its_files_back,
        undo=isolation.take_its_files_away,
    ),
    Step(
        "start-page-server",
        "start page server",
        lazy.start_its_page_server,
        undo=lazy.leave_the_page_server,
        when=lazy.is_lazy,
    ),
    Step(
        "restore-processes",
        "restore processes",
        processes.restore_the_processes,
        undo=processes.end_the_processes,
    ),
    # From here on every process exists and none runs: all of them can still be removed without a trace.
    Step(
        "decompress-pages",
        "decompress pages into processes",
        processes.put_its_memory_back,
        when=processes.has_memory_aside,
    ),
    Step(
        "check-page-server",
        "check page server",
        lazy.see_that_its_memory_will_arrive,
        when=lazy.is_lazy,
    ),
    Step("verify-listeners", "verify listeners", processes.check_the_ports_are_ours),
    Step("start-processes", "start processes", processes.let_it_run),
    Step(
        "attach-page-server",
        "attach page server",
        lazy.tie_it_to_its_page_server,
        when=lazy.is_lazy,
    ),
    Step("restore-gpu-memory", "restore GPU memory", gpu.give_it_its_gpus, when=gpu.had_gpus),
    Step("resume-engine", "resume engine", processes.let_its_requests_go_on),
    Step("wait-healthy", "wait until healthy", processes.wait_until_healthy),
    Step("verify-canary", "verify canary", processes.compare_the_canary),
    Step(
        "load-remaining-memory",
        "load remaining memory in the background",
        lazy.let_the_rest_arrive,
        when=lazy.is_lazy,
    ),
    Step(
        "hooks-after-restore",
        "run hooks: after-restore",
        hooks.after_restore,
        when=hooks.has_hooks,
    ),
)
RESTORE_STEPS: tuple[Step[Restore], ...] = (*OPEN_STEPS, *PORT_STEPS, *START_STEPS)


def restore(request: RestoreRequest) -> Engine:
    """Restore the checkpoint of `request` and return the running engine once it is healthy.

    Raises a CriaError; then nothing of the engine runs and the checkpoint is as it was.
    """
    state = Restore.of(request)
    timings = run_steps(
        "restore", RESTORE_STEPS, state, listener=request.listener, stopwatch=state.stopwatch
    )
    return engine_of(state, timings)


def engine_of(state: Restore, timings: Timings) -> Engine:
    """Return the engine that a finished restore has started."""
    published = state.checkpoint.manifest.published
    return Engine(
        pid=state.root,
        url=state.url,
        ports={old.port: state.reached_at(old).port for old in published},
        ports_moved=len(state.plan.moved_ports),
        timings=timings,
        shared_memory=state.shared,
    )
