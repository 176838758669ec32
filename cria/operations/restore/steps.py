"""Restore a checkpoint: the list of steps, in order. What each does is in the modules beside this one."""

from __future__ import annotations

from collections.abc import Iterator

from cria.engine.handle import Engine
from cria.events import Timings
from cria.operation import Step, run_steps
from cria.operations.restore import gpu, isolation, prepare, processes
from cria.operations.restore.state import OpenedState, RestoreState
from cria.requests import RestoreRequest


def restore(request: RestoreRequest) -> Engine:
    """Restore the checkpoint of `request` and return the running engine once it is healthy.

    Raises a CriaError; then nothing of the engine runs and the checkpoint is as it was.
    """
    state = RestoreState(request)
    timings = run_steps(
        "restore",
        restore_steps(request),
        state,
        listener=request.listener,
        stopwatch=state.stopwatch,
    )
    return engine_of(state, timings)


def engine_of(state: RestoreState, timings: Timings) -> Engine:
    """Return the engine that a finished restore has started."""
    published = state.checkpoint.manifest.api_endpoints
    return Engine(
        pid=state.root,
        url=state.url,
        ports={old.port: state.host_endpoint(old).port for old in published},
        ports_moved=len(state.plan.moved_ports),
        timings=timings,
        shared_memory=state.shared_memory,
    )


def restore_steps(request: RestoreRequest) -> tuple[Step[RestoreState], ...]:
    """Return the steps of a restore, with the optional ones that `request` asks for."""
    return (
        *open_steps(request),
        Step("plan-ports", "plan ports", prepare.plan_ports, undo=prepare.release_ports),
        Step("reserve-ports", "reserve ports", prepare.reserve_ports, undo=prepare.release_ports),
        *start_steps(request),
    )


def every_step() -> tuple[Step[RestoreState], ...]:
    """Return the steps of a restore with all that is optional, for `--explain`."""
    return restore_steps(RestoreRequest("", lazy=True, share_memory=True, hooks=("",)))


def open_steps(request: RestoreRequest) -> Iterator[Step[OpenedState]]:
    """Yield the steps that the clones of one restore have in common."""
    yield Step("open-checkpoint", "open checkpoint", prepare.open_checkpoint)
    yield Step("find-criu", "find CRIU", prepare.find_criu)
    yield Step(
        "check-checkpoint", "check that the checkpoint fits this host", prepare.check_checkpoint
    )
    yield Step("choose-gpus", "choose GPUs", gpu.choose, when=gpu.had_gpus)
    if request.shares_memory:
        from cria.operations.restore import share

        yield Step("build-backing-store", "build backing store", share.build_backing_store)
    if request.lazy:
        from cria.operations.restore import lazy

        yield Step("check-lazy", "check lazy restore", lazy.check)


def start_steps(request: RestoreRequest) -> Iterator[Step[RestoreState]]:
    """Yield the steps that bring one engine up, whose ports are reserved."""
    if request.hooks:
        from cria.operations.restore import hooks

        yield Step(
            "hooks-before-restore",
            "run hooks: before-restore",
            hooks.before_restore,
            undo=hooks.restore_failed,
        )
    yield Step(
        "choose-namespaces",
        "choose namespaces",
        isolation.choose_namespaces,
        undo=isolation.leave_namespaces,
    )
    yield Step(
        "prepare-images",
        "prepare images",
        isolation.prepare_images,
        undo=isolation.remove_images,
    )
    yield Step(
        "put-back-files",
        "put back saved files",
        isolation.put_back_files,
        undo=isolation.remove_files,
    )
    if request.lazy:
        from cria.operations.restore import lazy

        yield Step(
            "start-page-server",
            "start page server",
            lazy.start_page_server,
            undo=lazy.close_page_server,
        )
    yield Step(
        "restore-processes",
        "restore processes",
        processes.restore_processes,
        undo=processes.remove_processes,
    )
    # From here on every process exists and none runs: all of them can still be removed without a trace.
    yield Step(
        "decompress-pages",
        "decompress pages",
        processes.decompress_pages,
        when=processes.has_compressed_pages,
    )
    if request.lazy:
        yield Step("check-page-server", "check page server", lazy.check_page_server)
    yield Step("verify-listeners", "verify listeners", processes.verify_listeners)
    yield Step("start-processes", "start processes", processes.start_processes)
    if request.lazy:
        yield Step("attach-page-server", "attach page server", lazy.attach_page_server)
    yield Step("restore-gpu-memory", "restore GPU memory", gpu.restore_memory, when=gpu.had_gpus)
    yield Step("resume-engine", "resume engine", processes.resume_engine)
    yield Step("wait-healthy", "wait until healthy", processes.wait_until_healthy)
    yield Step("verify-canary", "verify canary", processes.verify_canary)
    if request.lazy:
        yield Step("load-remaining-memory", "load remaining memory", lazy.load_remaining_memory)
    if request.hooks:
        yield Step("hooks-after-restore", "run hooks: after-restore", hooks.after_restore)
