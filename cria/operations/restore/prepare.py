"""The steps of a restore before anything is started: which checkpoint, does it fit, which ports."""

from __future__ import annotations

from cria.checkpoint.handle import Checkpoint
from cria.criu import program
from cria.criu.client import Client
from cria.errors import PortTaken, UsageError
from cria.isolation.forwarded_ports import listen_on_host
from cria.network.images import sockets_of
from cria.network.occupancy import occupants
from cria.network.plan import PortPlan
from cria.network.planner import plan
from cria.network.requests import PortRequests
from cria.network.reservation import reserve
from cria.operations.checks import preflight
from cria.operations.restore.state import OpenedState, RestoreState
from cria.requests import RestoreRequest

_ATTEMPTS = 3  # to reserve ports: one that was free when it was planned may be taken by now


def open_checkpoint(state: OpenedState) -> None:
    given = state.request.checkpoint
    state.checkpoint = given if isinstance(given, Checkpoint) else Checkpoint.open(given)


def find_criu(state: OpenedState) -> None:
    criu = program.find()
    query = program.VersionQuery(criu)
    try:
        state.client = Client(criu)
    finally:  # an old CRIU is named as such, before anything that it lacks
        query.require()


def check_checkpoint(state: OpenedState) -> int:
    """Compare small parts with their digests, and the files that the engine needs here with samples.

    Memory pages are not read here, only their sizes are compared: a restore reads them once. `cria
    verify` compares them.
    """
    compared = state.checkpoint.check_small_parts()
    preflight.fits(state.checkpoint)
    return compared


def plan_ports(state: RestoreState) -> None:
    request = state.request
    if isinstance(request.ports, PortPlan):
        state.plan = request.ports
    elif request.isolate == "net":
        state.plan = _plan_own_network(state)
    else:
        state.plan = plan_for(state.checkpoint, request, state.clone)


def plan_for(checkpoint: Checkpoint, request: RestoreRequest, clone: int = 0) -> PortPlan:
    """Plan where every endpoint of `checkpoint` goes on this host now; nothing is changed.

    Raises PortPlanRefused, PortUnknown or PortTaken.
    """
    if isinstance(request.ports, PortPlan):
        return request.ports
    asked = port_requests(request)
    sockets = sockets_of(checkpoint.criu_images.files, inventory=checkpoint.manifest.inventory)
    # Where every port stays, only those who stand on these ports can be in the way.
    near = None if request.ports else {socket.local.port for socket in sockets}
    return plan(
        sockets,
        occupants(near=near),
        asked,
        outside=request.outside,
        clients=request.clients,
        clone=clone,
    )


def port_requests(request: RestoreRequest, default: str | None = None) -> PortRequests:
    """Return what `request` asks of the ports, `default` where it asks nothing.

    Raises UsageError for a finished plan: one plan cannot serve several engines.
    """
    if isinstance(request.ports, PortRequests):
        return request.ports
    if isinstance(request.ports, PortPlan):
        raise UsageError(
            "a port plan is for one engine",
            remedy='ask for ports instead, as in "8000=8001..8004"',
        )
    return PortRequests.parse(request.ports or ((default,) if default else ()))


def _plan_own_network(state: RestoreState) -> PortPlan:
    """Plan for a network namespace of its own: every port stays, and API ports are forwarded from the host."""
    asked = port_requests(state.request)
    inventory = state.checkpoint.manifest.inventory
    any_port = asked.mode in ("auto", "fresh")
    state.forwarded_ports = listen_on_host(
        inventory.api_listeners(), asked.for_clone(state.clone), any_port=any_port
    )
    sockets = sockets_of(state.checkpoint.criu_images.files, inventory=inventory)
    return plan(sockets, outside=state.request.outside, clients=state.request.clients)


def reserve_ports(state: RestoreState) -> None:
    """Reserve every port of the plan; where cria chose one that was taken meanwhile, plan again."""
    if state.request.isolate == "net":
        return
    for attempt in range(_ATTEMPTS):
        try:
            state.reservation = reserve(state.plan)
        except PortTaken:
            if attempt == _ATTEMPTS - 1 or isinstance(state.request.ports, PortPlan):
                raise
            plan_ports(state)  # raises where the port was asked for by number
        else:
            return


def release_ports(state: RestoreState) -> None:
    if state.reservation is not None:
        state.reservation.release()
    for port in state.forwarded_ports:
        port.close()
