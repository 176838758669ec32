"""Restore several clones of one checkpoint at once: FLEET_STEPS for what they share, then each its own steps."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from cria.checkpoint.handle import Checkpoint
from cria.engine.handle import Engine
from cria.errors import CriaError, NoSpace
from cria.events import Event, Listener, StepFailed, StepFinished, Warned, nobody
from cria.operation import Step, Stopwatch, run_steps
from cria.operations.restore import prepare
from cria.operations.restore.state import Restore, Source, fields_of
from cria.operations.restore.steps import OPEN_STEPS, START_STEPS, engine_of
from cria.requests import ReplicasRequest

if TYPE_CHECKING:
    from cria.network.plan import PortPlan


def restore_replicas(request: ReplicasRequest) -> tuple[Engine, ...]:
    """Restore several clones concurrently, each in namespaces of its own, and return those that stand.

    When a clone fails the others go on, and a Warned event says so; with `all_or_none`, or when none
    stands, all that was started is taken down and the first error raised. Hooks are run for each
    clone, from as many threads.
    """
    fleet = Fleet(
        **fields_of(request),
        replicas=request.replicas,
        all_or_none=request.all_or_none,
        listener=request.listener or nobody,
    )
    fleet.isolate = "net" if request.isolate == "net" else "always"
    run_steps("restore", FLEET_STEPS, fleet, listener=request.listener)
    return tuple(fleet.engines)


@dataclass(kw_only=True, eq=False, repr=False)
class Fleet(Source):
    """What the clones of one restore share."""

    replicas: int
    all_or_none: bool
    listener: Listener

    clones: list[Restore] = field(default_factory=list)
    engines: list[Engine] = field(default_factory=list)


# The steps ------------------------------------------------------------------------------------


def see_that_memory_suffices(fleet: Fleet) -> None:
    """Before the first clone: a host that runs out of memory kills whom it likes."""
    shared = fleet.shared.shared_bytes if fleet.shared is not None else 0
    one = fleet.checkpoint.memory_bytes() - shared
    available = available_bytes() - shared
    if one * fleet.replicas > available:
        also = f" beside {shared >> 20} MiB that they share" if shared else ""
        raise NoSpace(
            f"{fleet.replicas} clones need more memory than there is",
            details=f"{fleet.replicas} x {one >> 20} MiB are needed{also}, "
            f"{available >> 20} MiB are available",
            remedy=f"restore {available // max(one, 1)} at most: --replicas N",
        )


def plan_the_ports_of_all(fleet: Fleet) -> None:
    """With networks of their own no clone is in another's way, and each plans for itself."""
    common = {each.name: getattr(fleet, each.name) for each in fields(Source) if each.init}
    for number in range(fleet.replicas):
        tell = partial(_tell, fleet.listener, number + 1)
        clone = Restore(**common, clone=number, listener=tell)
        clone.checkpoint = fleet.checkpoint
        fleet.clones.append(clone)
    if fleet.isolate == "net":
        for clone in fleet.clones:
            prepare.plan_the_ports(clone)
        return
    plans = plan_fleet(fleet.checkpoint, fleet.replicas, fleet.wish, **fleet.policies)
    for clone, plan in zip(fleet.clones, plans, strict=True):
        clone.plan = plan


def plan_fleet(
    checkpoint: Checkpoint, replicas: int, ports: Any = None, **policies: Any
) -> tuple[PortPlan, ...]:
    """The plans for `replicas` clones in one network, none in the way of another; nothing is touched.

    `ports` and `policies` are as for Checkpoint.plan_ports, which also says what is raised.
    """
    from cria.criu import program
    from cria.network.images import sockets_of
    from cria.network.occupancy import occupants
    from cria.network.planner import plan_clones
    from cria.network.requests import Wishes

    asked = ports if isinstance(ports, Wishes) else Wishes.parse(ports or ("auto",))
    inventory = checkpoint.manifest.inventory
    sockets = sockets_of(checkpoint.images, program.find(), inventory=inventory)
    return plan_clones(sockets, replicas, occupants(), asked, **policies)


def hold_the_ports_of_all(fleet: Fleet) -> None:
    for clone in fleet.clones:
        prepare.hold_the_ports(clone)


def let_all_ports_go(fleet: Fleet) -> None:
    for clone in fleet.clones:
        prepare.let_the_ports_go(clone)


def restore_the_clones(fleet: Fleet) -> None:
    with ThreadPoolExecutor(max_workers=fleet.replicas) as pool:
        futures = [pool.submit(_bring_up, clone) for clone in fleet.clones]
    errors = [e for e in (future.exception() for future in futures) if e is not None]
    fleet.engines = [future.result() for future in futures if future.exception() is None]
    let_all_ports_go(fleet)
    if errors and (fleet.all_or_none or not fleet.engines):
        raise errors[0]
    for error in errors:
        what = error.message if isinstance(error, CriaError) else str(error)
        fleet.listener(Warned(message=f"a clone could not be restored: {what}"))


def stop_the_clones(fleet: Fleet) -> None:
    for engine in fleet.engines:
        engine.stop(seconds=0)
    fleet.engines.clear()


FLEET_STEPS: tuple[Step[Fleet], ...] = (
    *OPEN_STEPS,
    Step("check-memory", "check that memory suffices", see_that_memory_suffices),
    Step("plan-ports", "plan ports of all", plan_the_ports_of_all, undo=let_all_ports_go),
    Step("reserve-ports", "reserve ports of all", hold_the_ports_of_all, undo=let_all_ports_go),
    Step("restore-clones", "restore clones", restore_the_clones, undo=stop_the_clones),
)


def available_bytes(meminfo: Path = Path("/proc/meminfo")) -> int:
    """What the kernel thinks can be taken without swapping (proc(5), MemAvailable)."""
    lines = meminfo.read_text().splitlines()
    return int(next(x for x in lines if x.startswith("MemAvailable")).split()[1]) * 1024


def _bring_up(clone: Restore) -> Engine:
    clone.stopwatch = Stopwatch()
    timings = run_steps(
        "restore", START_STEPS, clone, listener=clone.listener, stopwatch=clone.stopwatch
    )
    return engine_of(clone, timings)


def _tell(listener: Listener, number: int, event: Event) -> None:
    """Of each clone only its end and its troubles are told: the steps of four at once are a tangle."""
    match event:
        case StepFinished(step="wait-healthy"):
            listener(msgspec.structs.replace(event, title=f"clone {number} is healthy"))
        case StepFailed():
            listener(msgspec.structs.replace(event, title=f"clone {number}: {event.title}"))
        case Warned():
            listener(event)
