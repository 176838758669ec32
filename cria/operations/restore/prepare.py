"""Before anything is started: which checkpoint, which ports, and are they ours to take."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cria.checkpoint.handle import Checkpoint

if TYPE_CHECKING:
    from cria.network.plan import PortPlan
    from cria.operations.restore.state import Restore, Source


def open_the_checkpoint(work: Source) -> None:
    source = work.source
    work.checkpoint = source if isinstance(source, Checkpoint) else Checkpoint.open(source)


def find_criu(work: Source) -> None:
    from cria.criu import program

    criu = program.find()
    asked = program.Asked(criu)
    from cria.criu.client import Client  # protobuf takes as long to load as CRIU to answer

    try:
        work.client = Client(criu)
    finally:  # a CRIU that is too old is told before what it lacks
        asked.require()


def check_it_fits(work: Source) -> int:
    """The parts that are small, by their digests, and the files it needs here, by samples.

    Memory pages are not read for this, only their sizes were compared: a restore reads them once, and
    shall not read them twice. `cria verify` does.
    """
    from cria.operations.checks import preflight

    seen = work.checkpoint.check_small_parts()
    preflight.fits(work.checkpoint, work.client.criu)
    return seen


def plan_the_ports(work: Restore) -> None:
    from cria.network.plan import PortPlan

    if isinstance(work.wish, PortPlan):
        work.plan = work.wish
    elif work.isolate == "net":
        work.plan = plan_for_own_network(work)
    else:
        work.plan = work.checkpoint.plan_ports(work.wish, **work.policies)


def plan_for_own_network(work: Restore) -> PortPlan:
    """Nobody else is there: every port stays. Those that are published are listened on here instead."""
    from cria.isolation.forwarded_ports import forwards
    from cria.network.images import sockets_of
    from cria.network.planner import plan
    from cria.network.requests import Wishes

    asked = work.wish if isinstance(work.wish, Wishes) else Wishes.parse(work.wish or ())
    inventory = work.checkpoint.manifest.inventory
    any_port = asked.mode in ("auto", "fresh")
    work.forwards = forwards(inventory.published(), asked.for_clone(work.clone), any_port=any_port)
    sockets = sockets_of(work.checkpoint.images, work.client.criu, inventory=inventory)
    return plan(sockets, **work.policies)


def hold_the_ports(work: Restore) -> None:
    """A port may be lost between plan and reservation: one that cria chose is then chosen anew."""
    from cria.errors import PortTaken
    from cria.network.plan import PortPlan
    from cria.network.reservation import reserve

    if work.isolate == "net":
        return
    for last in (False, False, True):
        try:
            work.reservation = reserve(work.plan)
        except PortTaken:
            if last or isinstance(work.wish, PortPlan):
                raise
            plan_the_ports(work)  # says so where the port was asked for by number
        else:
            return


def let_the_ports_go(work: Restore) -> None:
    if work.reservation is not None:
        work.reservation.release()
    for forward in work.forwards:
        forward.close()
