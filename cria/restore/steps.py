"""What a restore does, in this order: the words of the lists are in the modules beside it."""

from __future__ import annotations

from cria.operation import Step
from cria.restore import arriving, awake, gpu, place, prepare, processes, share, told
from cria.restore.work import Restore

PREPARE: tuple[Step[Restore], ...] = (
    Step("open the checkpoint", prepare.open_the_checkpoint),
    Step("find CRIU", prepare.find_criu),
    Step("check it fits", prepare.check_it_fits),
    Step("choose its GPUs", gpu.choose_its_gpus, when=gpu.had_gpus),
    Step("share its memory", share.share_its_memory, when=share.is_wanted),
    Step("check it can be lazy", arriving.check_it_can_be_lazy, when=arriving.is_lazy),
    Step("plan the ports", prepare.plan_the_ports, undo=prepare.let_the_ports_go),
    Step("hold the ports", prepare.hold_the_ports, undo=prepare.let_the_ports_go),
)
BRING_UP: tuple[Step[Restore], ...] = (
    Step(
        "hooks: before-restore", told.before_restore, undo=told.restore_failed, when=told.has_hooks
    ),
    Step("choose where it lives", place.choose_where_it_lives, undo=place.leave_the_place),
    Step("make a private view", place.make_a_private_view, undo=place.remove_the_view),
    Step("put its files back", place.put_its_files_back, undo=place.take_its_files_away),
    Step(
        "start its page server",
        arriving.start_its_page_server,
        undo=arriving.leave_the_page_server,
        when=arriving.is_lazy,
    ),
    Step(
        "restore the processes", processes.restore_the_processes, undo=processes.end_the_processes
    ),
    Step("put its memory back", processes.put_its_memory_back, when=processes.has_memory_aside),
    Step(
        "see that its memory will arrive",
        arriving.see_that_its_memory_will_arrive,
        when=arriving.is_lazy,
    ),
    # Every process exists now, none runs, and all can still be taken down without a trace.
    Step("check the ports are ours", processes.check_the_ports_are_ours),
    Step("let it run", processes.let_it_run),
    Step("tie it to its page server", arriving.tie_it_to_its_page_server, when=arriving.is_lazy),
    Step("give it its GPUs", gpu.give_it_its_gpus, when=gpu.had_gpus),
    Step("let its requests go on", awake.let_its_requests_go_on),
    Step("wait until healthy", awake.wait_until_healthy),
    Step("compare the canary", awake.compare_the_canary),
    Step("let the rest of its memory arrive", arriving.let_the_rest_arrive, when=arriving.is_lazy),
    Step("hooks: after-restore", told.after_restore, when=told.has_hooks),
)
RESTORE_STEPS = (*PREPARE, *BRING_UP)
