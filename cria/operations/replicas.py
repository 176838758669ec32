"""Restore several clones of one checkpoint at once: some steps for all of them, then each clone its own."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

import msgspec

from cria.checkpoint.handle import Checkpoint
from cria.engine.handle import Engine
from cria.errors import CriaError, NoSpace, NoSuchProcess
from cria.events import Event, Listener, StepFailed, StepFinished, Warned
from cria.model.inventory import Process
from cria.network.images import sockets_of
from cria.network.occupancy import occupants
from cria.network.plan import PortPlan
from cria.network.planner import plan_clones
from cria.operation import Step, run_steps
from cria.operations.restore import prepare
from cria.operations.restore.state import OpenedState, RestoreState
from cria.operations.restore.steps import engine_of, open_steps, start_steps
from cria.requests import ReplicasRequest, RestoreRequest
from cria.system import processes
from cria.system.host import available_memory
from cria.system.procfs import tree


def restore_replicas(request: ReplicasRequest) -> tuple[Engine, ...]:
    """Restore clones concurrently, each in namespaces of its own, and return those that are healthy.

    Where a clone fails the others go on, and a Warned event names it. Where none is healthy, or with
    `all_or_none` where one fails, all of them are taken down and the first error is raised. Hooks run
    for each clone, in as many threads.
    """
    state = ReplicasState(request)
    run_steps("restore", replicas_steps(request), state, listener=request.listener)
    return tuple(state.engines)


def replicas_steps(request: ReplicasRequest) -> tuple[Step[ReplicasState], ...]:
    """Return the steps of a restore of several clones; those of each clone run in "restore clones"."""
    return (
        *open_steps(request),
        Step("check-memory", "check that memory suffices", check_memory),
        Step("plan-ports", "plan ports of all clones", plan_ports, undo=release_ports),
        Step("reserve-ports", "reserve ports of all clones", reserve_ports, undo=release_ports),
        Step("restore-clones", "restore clones", restore_clones, undo=stop_clones),
    )


@dataclass(eq=False, repr=False)
class ReplicasState(OpenedState):
    """The clones of one restore."""

    request: ReplicasRequest
    clones: list[RestoreState] = field(default_factory=list)
    engines: list[Engine] = field(default_factory=list)
    cancelled: threading.Event = field(default_factory=threading.Event)
    pool: ThreadPoolExecutor = field(init=False)


def check_memory(state: ReplicasState) -> None:
    """Refuse before the first clone starts: a host that runs out of memory kills processes of its choice."""
    replicas = state.request.replicas
    shared = state.shared_memory.shared_bytes if state.shared_memory is not None else 0
    one = state.checkpoint.memory_bytes() - shared
    available = available_memory() - shared
    if one * replicas > available:
        besides = f" besides {shared >> 20} MiB of shared memory" if shared else ""
        raise NoSpace(
            f"{replicas} clones need more memory than is available",
            details=f"{replicas} x {one >> 20} MiB are needed{besides}, "
            f"{available >> 20} MiB are available",
            remedy=f"restore {available // max(one, 1)} at most: --replicas N",
        )


def plan_ports(state: ReplicasState) -> None:
    """Plan the ports of all clones together; with a network namespace each, every clone by itself."""
    request = state.request
    own_network = request.isolate == "net"
    for number in range(request.replicas):
        clone_request = msgspec.structs.replace(
            request,
            isolate="net" if own_network else "always",
            listener=partial(_tell, state.listener, number + 1),
        )
        state.clones.append(RestoreState.clone_of(state, clone_request, number))
    if own_network:
        for clone in state.clones:
            prepare.plan_ports(clone)
        return
    plans = plans_for(state.checkpoint, request, request.replicas)
    for clone, plan in zip(state.clones, plans, strict=True):
        clone.plan = plan


def plans_for(
    checkpoint: Checkpoint, request: RestoreRequest, replicas: int
) -> tuple[PortPlan, ...]:
    """Plan the ports of `replicas` clones in one network, none in the way of another; nothing is changed.

    Raises PortPlanRefused, PortUnknown or PortTaken.
    """
    asked = prepare.port_requests(request, default="auto")
    sockets = sockets_of(checkpoint.criu_images.files, inventory=checkpoint.manifest.inventory)
    return plan_clones(
        sockets,
        replicas,
        occupants(),
        asked,
        outside=request.outside,
        clients=request.clients,
    )


def reserve_ports(state: ReplicasState) -> None:
    for clone in state.clones:
        prepare.reserve_ports(clone)


def release_ports(state: ReplicasState) -> None:
    for clone in state.clones:
        prepare.release_ports(clone)


def restore_clones(state: ReplicasState) -> None:
    state.pool = ThreadPoolExecutor(max_workers=state.request.replicas)
    futures = [state.pool.submit(_start, clone, state.cancelled) for clone in state.clones]
    wait(futures)
    errors = [error for error in map(Future.exception, futures) if error is not None]
    state.engines = [future.result() for future in futures if future.exception() is None]
    state.pool.shutdown()
    release_ports(state)
    if errors and (state.request.all_or_none or not state.engines):
        raise errors[0]
    for error in errors:
        what = error.message if isinstance(error, CriaError) else str(error)
        state.listener(Warned(message=f"a clone could not be restored: {what}"))


def stop_clones(state: ReplicasState) -> None:
    """Take down every clone: those that are healthy, and those that are still being restored.

    An interrupt reaches the main thread only, while the clones' threads go on.
    """
    state.cancelled.set()
    family: list[Process] = []
    for clone in state.clones:
        with suppress(NoSuchProcess):
            family += tree(clone.root) if clone.root else ()
        if clone.has("namespaces"):
            clone.namespaces.leave()  # a step that waits for the clone then fails at once
    if state.has("pool"):
        state.pool.shutdown()
    processes.wait_for_exit(family)
    state.engines.clear()


def _start(clone: RestoreState, cancelled: threading.Event) -> Engine:
    timings = run_steps(
        "restore",
        tuple(start_steps(clone.request)),
        clone,
        listener=clone.listener,
        stopwatch=clone.stopwatch,
        cancelled=cancelled,
    )
    return engine_of(clone, timings)


def _tell(listener: Listener, number: int, event: Event) -> None:
    """Pass on only when a clone is healthy or fails: the steps of several at once would be a tangle."""
    match event:
        case StepFinished(step="wait-healthy"):
            listener(msgspec.structs.replace(event, title=f"clone {number} is healthy"))
        case StepFailed():
            listener(msgspec.structs.replace(event, title=f"clone {number}: {event.title}"))
        case Warned():
            listener(event)
