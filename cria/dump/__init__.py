"""Dump an engine: the whole operation is the list in steps.py."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cria.checkpoint import Checkpoint
    from cria.events import Listener
    from cria.hooks import Hook
    from cria.inventory import Inventory
    from cria.manifest import Inflight, Weights


def dump(
    target: int | None = None,
    output: str | os.PathLike[str] = "checkpoint",
    *,
    port: int | None = None,
    leave_running: bool = False,
    any_process: bool = False,
    skip_in_flight: bool = False,
    compress: bool = False,
    direct_io: bool = False,
    canary: bool = True,
    inflight: Inflight | None = "keep",
    quiesce_seconds: float = 60.0,
    weights: Weights = "keep",
    gpu_seconds: float = 300.0,
    hooks: Iterable[Hook] = (),
    hook_seconds: float = 30.0,
    listener: Listener | None = None,
) -> Checkpoint:
    """Dump the engine that `target` (any of its PIDs) belongs to into the new directory `output`.

    Without a target the engine is found by its HTTP `port`, or is the only one on this host. The
    engine ends, unless `leave_running`. `any_process` also takes a process tree that is no vLLM
    engine. With `canary` it generates a few tokens before, for every restore to compare with. It is
    brought to a still point first, requests `inflight` kept, drained or aborted; None leaves it as it is.
    Of an engine with GPUs `weights` are kept in the checkpoint or dropped, to be read again from the
    model's files; each copy to the host or back may take `gpu_seconds`.
    `hooks` are programs or functions that are run at the stages of hooks/README.md, a program for
    `hook_seconds` at most. Raises a CriaError; the engine then runs on and `output` does not exist.
    """
    from cria.checkpoint import Checkpoint
    from cria.dump.steps import DUMP_STEPS
    from cria.dump.work import Dump
    from cria.operation import run_steps

    work = Dump(
        target=target,
        port=port,
        output=Path(output).absolute(),
        leave_running=leave_running,
        any_process=any_process,
        skip_in_flight=skip_in_flight,
        compress=compress,
        direct_io=direct_io,
        wants_canary=canary,
        inflight=inflight,
        quiesce_seconds=quiesce_seconds,
        weights=weights,
        gpu_seconds=gpu_seconds,
        wants_hooks=tuple(hooks),
        hook_seconds=hook_seconds,
        listener=listener,
    )
    timings = run_steps("dump", DUMP_STEPS, work, listener=listener, stopwatch=work.stopwatch)
    return Checkpoint(work.output, work.manifest, timings)


def plan(
    target: int | None = None,
    output: str | os.PathLike[str] = "checkpoint",
    *,
    port: int | None = None,
    any_process: bool = False,
) -> Inventory:
    """Do what a dump does before it touches anything, and return what it would dump.

    Raises the CriaError that the dump would raise.
    """
    from cria.dump import engine
    from cria.dump.work import Dump

    work = Dump(target=target, port=port, output=Path(output).absolute(), any_process=any_process)
    for step in (
        engine.find_the_engine,
        engine.find_criu,
        engine.take_its_inventory,
        engine.check_it_can_be_dumped,
    ):
        step(work)
    return work.inventory
