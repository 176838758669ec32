"""Restore a checkpoint: the whole operation is the list in steps.py."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cria.checkpoint import Checkpoint
    from cria.engine.handle import Engine
    from cria.events import Listener
    from cria.hooks import Hook
    from cria.restore.work import Isolate, Policy, Restore
    from cria.timings import Timings


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
    from cria.restore.steps import RESTORE_STEPS
    from cria.restore.work import Restore

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
