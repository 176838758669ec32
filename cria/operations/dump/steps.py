"""Dump an engine: the list of steps, in order. What each does is in the modules beside this one."""

from __future__ import annotations

from cria.checkpoint.handle import Checkpoint
from cria.model.inventory import Inventory
from cria.operation import Step, run_steps
from cria.operations.dump import engine, gpu, hooks, memory, publish
from cria.operations.dump.state import DumpState
from cria.requests import DumpRequest

DUMP_STEPS: tuple[Step[DumpState], ...] = (
    Step("check-hooks", "check hooks", hooks.check, when=hooks.are_given),
    Step("find-engine", "find engine", engine.find_engine),
    Step("lock-engine", "lock engine", engine.lock_engine, undo=engine.unlock_engine),
    Step(
        "wait-for-memory",
        "wait for lazily restored memory",
        engine.wait_for_memory,
        when=engine.is_still_loading,
    ),
    Step("find-criu", "find CRIU", engine.find_criu),
    # A hook may redirect clients: the inventory is taken after that.
    Step(
        "hooks-before-dump",
        "run hooks: before-dump",
        hooks.before_dump,
        undo=hooks.dump_failed,
        when=hooks.are_given,
    ),
    Step("take-inventory", "take inventory", engine.take_inventory),
    Step("check-engine", "check that the engine can be dumped", engine.check_engine),
    Step("record-canary", "record canary", engine.record_canary),
    Step("find-files", "find engine files", engine.find_files),
    Step(
        "stage-checkpoint",
        "stage checkpoint",
        publish.stage_checkpoint,
        undo=publish.discard_checkpoint,
    ),
    Step(
        "quiesce-engine",
        "quiesce engine",
        engine.quiesce_engine,
        undo=engine.resume_engine,
    ),
    Step(
        "hooks-at-still-point",
        "run hooks: at-still-point",
        hooks.at_still_point,
        when=hooks.are_given,
    ),
    Step("drop-caches", "drop caches", engine.drop_caches),
    Step(
        "sleep-engine",
        "put vLLM to sleep",
        gpu.sleep_engine,
        when=gpu.uses_gpus,
    ),
    Step(
        "save-gpu-memory",
        "save GPU memory",
        gpu.save_memory,
        undo=gpu.restore_memory,
        when=gpu.uses_gpus,
    ),
    Step(
        "write-images",
        "write memory images",
        memory.write_images,
        undo=memory.unfreeze,
    ),
    # From here on every process is frozen, and the engine can still run on as before. It goes on in
    # one of two steps: "resume engine" or "end engine".
    Step("save-files", "save files", memory.save_files),
    Step("check-images", "check images", memory.check_images),
    Step(
        "resume-engine",
        "resume engine",
        memory.resume,
        when=memory.runs_on,
    ),
    Step(
        "hooks-after-resume",
        "run hooks: after-resume",
        hooks.after_resume,
        when=hooks.are_given_and_engine_runs_on,
    ),
    Step(
        "materialize-shared-memory",
        "copy shared memory into images",
        publish.materialize_shared_memory,
        when=publish.shares_memory,
    ),
    Step("take-fingerprints", "take fingerprints", publish.take_fingerprints),
    Step("compress-pages", "compress pages", publish.compress_pages, when=publish.compresses),
    Step("drop-zero-pages", "drop zero pages", publish.drop_zero_pages, when=publish.is_plain),
    Step("digest-parts", "digest parts", publish.digest_parts),
    Step("write-manifest", "write manifest", publish.write_manifest),
    Step(
        "publish-checkpoint",
        "publish checkpoint",
        publish.publish_checkpoint,
        undo=publish.withdraw_checkpoint,
    ),
    Step("end-engine", "end engine", memory.end, when=memory.ends),
    Step("clean-up", "clean up", engine.clean_up),
    Step(
        "report-lost-gpus",
        "report lost GPUs",
        gpu.report_lost,
        when=gpu.are_lost,
    ),
    Step("hooks-after-dump", "run hooks: after-dump", hooks.after_dump, when=hooks.are_given),
)

# What a dump does before it changes anything.
_LOOKS = ("find-engine", "find-criu", "take-inventory", "check-engine")


def dump(request: DumpRequest) -> Checkpoint:
    """Dump the engine of `request` into a new checkpoint.

    Raises a CriaError; the engine then runs on and there is no checkpoint.
    """
    state = DumpState(request)
    timings = run_steps(
        "dump", DUMP_STEPS, state, listener=request.listener, stopwatch=state.stopwatch
    )
    return Checkpoint(state.staged.output, state.manifest, timings)


def plan(request: DumpRequest) -> Inventory:
    """Check what a dump checks before it changes anything, and return what it would dump.

    Raises the CriaError that the dump would raise.
    """
    state = DumpState(request)
    for step in DUMP_STEPS:
        if step.id in _LOOKS:
            step.run(state)
    return state.inventory
