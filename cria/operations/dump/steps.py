"""Dump an engine: the list of steps, in order. What each does is in the modules beside this one."""

from __future__ import annotations

from cria.checkpoint.handle import Checkpoint
from cria.model.inventory import Inventory
from cria.operation import Step, run_steps
from cria.operations.dump import engine, gpu, hooks, memory, publish
from cria.operations.dump.state import Dump
from cria.requests import DumpRequest

DUMP_STEPS: tuple[Step[Dump], ...] = (
    Step("check-hooks", "check hooks", hooks.check_the_hooks, when=hooks.has_hooks),
    Step("find-engine", "find engine", engine.find_the_engine),
    Step("lock-engine", "lock engine", engine.lock_it, undo=engine.unlock_it),
    Step(
        "wait-for-memory",
        "wait for lazily restored memory",
        engine.wait_for_its_memory,
        when=engine.memory_still_arrives,
    ),
    Step("find-criu", "find CRIU", engine.find_criu),
    # A hook may redirect clients: the inventory is taken after that.
    Step(
        "hooks-before-dump",
        "run hooks: before-dump",
        hooks.before_dump,
        undo=hooks.dump_failed,
        when=hooks.has_hooks,
    ),
    Step("take-inventory", "take inventory", engine.take_its_inventory),
    Step("check-engine", "check that the engine can be dumped", engine.check_it_can_be_dumped),
    Step("record-canary", "record canary", engine.record_the_canary),
    Step("find-files", "find engine files", engine.find_its_files),
    Step(
        "stage-checkpoint",
        "stage checkpoint",
        publish.stage_the_checkpoint,
        undo=publish.discard_the_checkpoint,
    ),
    Step(
        "quiesce-engine",
        "quiesce engine",
        engine.pause_the_engine,
        undo=engine.resume_the_engine,
    ),
    Step(
        "hooks-at-still-point",
        "run hooks: at-still-point",
        hooks.at_still_point,
        when=hooks.has_hooks,
    ),
    Step("drop-caches", "drop caches", engine.drop_what_can_be_made_again),
    Step(
        "sleep-engine",
        "put vLLM to sleep",
        gpu.free_what_vllm_can_make_again,
        when=gpu.uses_gpus,
    ),
    Step(
        "save-gpu-memory",
        "save GPU memory",
        gpu.take_its_gpu_memory,
        undo=gpu.give_it_back,
        when=gpu.uses_gpus,
    ),
    Step(
        "write-images",
        "write memory images",
        memory.freeze_and_write_memory,
        undo=memory.let_it_run_on,
    ),
    # From here on every process is frozen, and the engine can still run on as before. It goes on in
    # one of two steps: "resume engine" or "end engine".
    Step("save-files", "save files", memory.carry_its_files),
    Step("check-images", "check images", memory.check_the_images),
    Step(
        "resume-engine",
        "resume engine",
        memory.resume_it_if_it_lives_on,
        when=memory.lives_on,
    ),
    Step(
        "hooks-after-resume",
        "run hooks: after-resume",
        hooks.after_resume,
        when=hooks.has_hooks_and_lives_on,
    ),
    Step(
        "materialize-shared-memory",
        "copy shared memory into images",
        publish.take_in_what_it_shared,
        when=publish.shared_memory,
    ),
    Step("take-fingerprints", "take fingerprints", publish.record_what_it_can_find_again),
    Step("compress-pages", "compress pages", publish.compress_pages, when=publish.compresses),
    Step("drop-zero-pages", "drop zero pages", publish.drop_zero_pages, when=publish.is_plain),
    Step("digest-parts", "digest parts", publish.digest_every_part),
    Step("write-manifest", "write manifest", publish.describe_it),
    Step(
        "publish-checkpoint",
        "publish checkpoint",
        publish.publish_it,
        undo=publish.take_it_back,
    ),
    Step("end-engine", "end engine", memory.end_it_unless_it_lives_on, when=memory.ends),
    Step("clean-up", "clean up", engine.clear_what_it_left),
    Step(
        "report-lost-gpus",
        "report lost GPUs",
        gpu.say_that_it_lost_its_gpus,
        when=gpu.lost_its_gpus,
    ),
    Step("hooks-after-dump", "run hooks: after-dump", hooks.after_dump, when=hooks.has_hooks),
)

# What a dump does before it changes anything.
_LOOKS = ("find-engine", "find-criu", "take-inventory", "check-engine")


def dump(request: DumpRequest) -> Checkpoint:
    """Dump the engine of `request` into a new checkpoint.

    Raises a CriaError; the engine then runs on and there is no checkpoint.
    """
    state = Dump.of(request)
    timings = run_steps(
        "dump", DUMP_STEPS, state, listener=request.listener, stopwatch=state.stopwatch
    )
    return Checkpoint(state.output, state.manifest, timings)


def plan(request: DumpRequest) -> Inventory:
    """Check what a dump checks before it changes anything, and return what it would dump.

    Raises the CriaError that the dump would raise.
    """
    state = Dump.of(request)
    for step in DUMP_STEPS:
        if step.id in _LOOKS:
            step.run(state)
    return state.inventory
