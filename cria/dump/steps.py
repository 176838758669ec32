"""What a dump does, in this order: the words of the list are in the modules beside it."""

from __future__ import annotations

from cria.dump import engine, gpu, memory, publish, told
from cria.dump.work import Dump
from cria.operation import Step

DUMP_STEPS: tuple[Step[Dump], ...] = (
    Step("check the hooks", told.check_the_hooks, when=told.has_hooks),
    Step("find the engine", engine.find_the_engine),
    Step("lock it", engine.lock_it, undo=engine.unlock_it),
    Step("wait for its memory", engine.wait_for_its_memory, when=engine.memory_still_arrives),
    Step("find CRIU", engine.find_criu),
    # A hook may send its clients elsewhere: what it holds is looked at after that.
    Step("hooks: before-dump", told.before_dump, undo=told.dump_failed, when=told.has_hooks),
    Step("take its inventory", engine.take_its_inventory),
    Step("check it can be dumped", engine.check_it_can_be_dumped),
    Step("record the canary", engine.record_the_canary),
    Step("find its files", engine.find_its_files),
    Step("stage the checkpoint", publish.stage_the_checkpoint, undo=publish.discard_the_checkpoint),
    Step("pause the engine", engine.pause_the_engine, undo=engine.resume_the_engine),
    Step("hooks: at-still-point", told.at_still_point, when=told.has_hooks),
    Step("drop what can be made again", engine.drop_what_can_be_made_again),
    Step("free what vLLM can make again", gpu.free_what_vllm_can_make_again, when=gpu.uses_gpus),
    Step("take its GPU memory", gpu.take_its_gpu_memory, undo=gpu.give_it_back, when=gpu.uses_gpus),
    Step("freeze and write memory", memory.freeze_and_write_memory, undo=memory.let_it_run_on),
    # From here the engine stands still and can still be let go: to one of the two steps that say how it goes on.
    Step("carry its files", memory.carry_its_files),
    Step("check the images", memory.check_the_images),
    Step("resume it, if it lives on", memory.resume_it_if_it_lives_on),
    Step("hooks: after-resume", told.after_resume, when=told.has_hooks_and_lives_on),
    Step("take in what it shared", publish.take_in_what_it_shared, when=publish.shared_memory),
    Step("record what it can find again", publish.record_what_it_can_find_again),
    Step("make its memory lean", publish.make_its_memory_lean),
    Step("digest every part", publish.digest_every_part),
    Step("describe it", publish.describe_it),
    Step("publish it", publish.publish_it, undo=publish.take_it_back),
    Step("end it, unless it lives on", memory.end_it_unless_it_lives_on),
    Step("clear what it left", engine.clear_what_it_left),
    Step("say that it lost its GPUs", gpu.say_that_it_lost_its_gpus, when=gpu.lost_its_gpus),
    Step("hooks: after-dump", told.after_dump, when=told.has_hooks),
)
