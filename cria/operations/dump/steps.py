"""What a dump does, in this order: the words of the list are in the modules beside it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from cria.operation import Step
from cria.operations.dump import engine, gpu, hooks, memory, publish
from cria.operations.dump.state import Dump

if TYPE_CHECKING:
    from cria.checkpoint.handle import Checkpoint
    from cria.events import Listener
    from cria.model.inventory import Inventory
    from cria.model.manifest import Inflight, Weights
    from cria.operations.hooks import Hook

DUMP_STEPS: tuple[Step[Dump], ...] = (
    Step("check the hooks", hooks.check_the_hooks, when=hooks.has_hooks),
    Step("find the engine", engine.find_the_engine),
    Step("lock it", engine.lock_it, undo=engine.unlock_it),
    Step("wait for its memory", engine.wait_for_its_memory, when=engine.memory_still_arrives),
    Step("find CRIU", engine.find_criu),
    # A hook may send its clients elsewhere: what it holds is looked at after that.
    Step("hooks: before-dump", hooks.before_dump, undo=hooks.dump_failed, when=hooks.has_hooks),
    Step("take its inventory", engine.take_its_inventory),
    Step("check it can be dumped", engine.check_it_can_be_dumped),
    Step("record the canary", engine.record_the_canary),
    Step("find its files", engine.find_its_files),
    Step("stage the checkpoint", publish.stage_the_checkpoint, undo=publish.discard_the_checkpoint),
    Step("pause the engine", engine.pause_the_engine, undo=engine.resume_the_engine),
    Step("hooks: at-still-point", hooks.at_still_point, when=hooks.has_hooks),
    Step("drop what can be made again", engine.drop_what_can_be_made_again),
    Step("free what vLLM can make again", gpu.free_what_vllm_can_make_again, when=gpu.uses_gpus),
    Step("take its GPU memory", gpu.take_its_gpu_memory, undo=gpu.give_it_back, when=gpu.uses_gpus),
    Step("freeze and write memory", memory.freeze_and_write_memory, undo=memory.let_it_run_on),
    # From here the engine stands still and can still be let go: to one of the two steps that say how it goes on.
    Step("carry its files", memory.carry_its_files),
    Step("check the images", memory.check_the_images),
    Step("resume it, if it lives on", memory.resume_it_if_it_lives_on),
    Step("hooks: after-resume", hooks.after_resume, when=hooks.has_hooks_and_lives_on),
    Step("take in what it shared", publish.take_in_what_it_shared, when=publish.shared_memory),
    Step("record what it can find again", publish.record_what_it_can_find_again),
    Step("make its memory lean", publish.make_its_memory_lean),
    Step("digest every part", publish.digest_every_part),
    Step("describe it", publish.describe_it),
    Step("publish it", publish.publish_it, undo=publish.take_it_back),
    Step("end it, unless it lives on", memory.end_it_unless_it_lives_on),
    Step("clear what it left", engine.clear_what_it_left),
    Step("say that it lost its GPUs", gpu.say_that_it_lost_its_gpus, when=gpu.lost_its_gpus),
    Step("hooks: after-dump", hooks.after_dump, when=hooks.has_hooks),
)


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
    from cria.checkpoint.handle import Checkpoint
    from cria.operation import run_steps
    from cria.operations.dump.state import Dump

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
    from cria.operations.dump import engine
    from cria.operations.dump.state import Dump

    work = Dump(target=target, port=port, output=Path(output).absolute(), any_process=any_process)
    for step in (
        engine.find_the_engine,
        engine.find_criu,
        engine.take_its_inventory,
        engine.check_it_can_be_dumped,
    ):
        step(work)
    return work.inventory
