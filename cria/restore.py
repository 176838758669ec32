"""Restore a checkpoint: the whole operation is the list RESTORE_STEPS; the functions below it are its words."""

from __future__ import annotations

import os
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cria.checkpoint import Checkpoint
from cria.errors import NoSuchProcess, RestoreFailed
from cria.operation import Step, Stopwatch, run_steps

if TYPE_CHECKING:
    from cria.engine.handle import Engine
    from cria.events import Listener
    from cria.inventory import Endpoint
    from cria.manifest import CarriedFile
    from cria.namespaces.place import Host, OwnNamespaces
    from cria.namespaces.published import Forward
    from cria.ports import PortPlan
    from cria.timings import Timings

Isolate = Literal["auto", "always", "never", "net"]
Policy = Literal["refuse", "close", "keep"]


def restore(
    checkpoint: Checkpoint | str | os.PathLike[str],
    *,
    ports: Any = None,
    wait_seconds: float = 120.0,
    isolate: Isolate = "auto",
    outside: Policy = "refuse",
    clients: Policy = "close",
    canary: bool = True,
    listener: Listener | None = None,
) -> Engine:
    """Restore `checkpoint` and return the running engine once it is healthy.

    `ports` is a PortPlan, or a wish for one: {8000: 8001}, "keep", "auto", "offset:1000". `clients` says
    what becomes of connections from outside to a published listener, `outside` of any other with one
    end in the checkpoint: they are refused, closed in the restored engine, or kept.
    The engine lives among the host's processes, or in pid, mount and ipc namespaces of its own: `auto`
    when a PID or path it needs is taken, `always`, or `never`. `net` gives it a network namespace too: no
    port is rewritten, and connections to its published ports are carried inside. Raises a CriaError;
    then nothing of the engine runs and the checkpoint is as it was.
    """
    work = Restore(
        source=checkpoint,
        wish=ports,
        wait_seconds=wait_seconds,
        isolate=isolate,
        policies={"outside": outside, "clients": clients},
        wants_canary=canary,
        listener=listener,
    )
    timings = run_steps("restore", RESTORE_STEPS, work, listener=listener, stopwatch=work.stopwatch)
    return engine_of(work, timings)


def engine_of(work: Restore, timings: Timings) -> Engine:
    """The engine that a finished restore has brought up."""
    from cria.engine.handle import Engine

    published = work.checkpoint.manifest.published
    return Engine(
        pid=work.root,
        url=work.url,
        ports={old.port: work.reached_at(old).port for old in published},
        ports_moved=len(work.plan.moved_ports),
        timings=timings,
    )


@dataclass(kw_only=True)
class Source:
    """What every restore begins with."""

    source: Checkpoint | str | os.PathLike[str]
    checkpoint: Checkpoint = field(init=False)
    client: Any = None


@dataclass(kw_only=True)
class Restore(Source):
    """What the steps of one restore know and hand on."""

    wish: Any
    wait_seconds: float
    isolate: Isolate
    policies: dict[str, Any] = field(default_factory=dict)
    listener: Listener | None
    wants_canary: bool = True
    clone: int = 0
    stopwatch: Stopwatch = field(default_factory=Stopwatch)

    plan: PortPlan = field(init=False)
    reservation: Any = None
    view: Path | None = None
    placed: tuple[CarriedFile, ...] = ()
    conversation: Any = None
    locks: ExitStack = field(default_factory=ExitStack)
    place: Host | OwnNamespaces | None = None
    unix_names: dict[int, bytes] = field(default_factory=dict)
    forwards: list[Forward] = field(default_factory=list)
    inner_root: int = 0
    root: int = 0
    url: str | None = None

    def reached_at(self, old: Endpoint) -> Endpoint:
        """Where on this host a listener of the checkpoint is reached now."""
        for forward in self.forwards:
            if forward.inner == old:
                return forward.outer
        return next(move.new for move in self.plan.listeners if move.old == old)

    def netns(self) -> Path | None:
        """The engine's network namespace, None where it shares cria's."""
        return self.place.netns if self.place is not None else None

    def tag(self) -> str:
        """What tells this clone's files from those of others: the port its clients know, or its first."""
        if self.forwards:
            return str(self.forwards[0].outer.port)
        published = [move for move in self.plan.listeners if move.role == "HTTP API"]
        named = published or self.plan.listeners
        return str(named[0].new.port) if named else f"{os.getpid()}-{id(self):x}"


# The steps ------------------------------------------------------------------------------------


def open_the_checkpoint(work: Source) -> None:
    source = work.source
    work.checkpoint = source if isinstance(source, Checkpoint) else Checkpoint.open(source)


def find_criu(work: Source) -> None:
    from cria.criu import binary
    from cria.criu.client import Client

    criu = binary.find()
    binary.require(criu)
    work.client = Client(criu)


def check_it_fits(work: Source) -> int:
    """The parts that are small, by their digests, and the files it needs here, by samples.

    Memory pages are not read for this, only their sizes were compared: a restore reads them once, and
    shall not read them twice. `cria verify` does.
    """
    from cria.doctor import preflight

    seen = work.checkpoint.check_small_parts()
    preflight.fits(work.checkpoint, work.client.criu)
    return seen


def plan_the_ports(work: Restore) -> None:
    from cria.ports import PortPlan

    if isinstance(work.wish, PortPlan):
        work.plan = work.wish
    elif work.isolate == "net":
        work.plan = plan_for_own_network(work)
    else:
        work.plan = work.checkpoint.plan_ports(work.wish, **work.policies)


def plan_for_own_network(work: Restore) -> PortPlan:
    """Nobody else is there: every port stays. Those that are published are listened on here instead."""
    from cria.namespaces.published import forwards
    from cria.ports import Wishes, plan, sockets_of

    asked = work.wish if isinstance(work.wish, Wishes) else Wishes.parse(work.wish or ())
    inventory = work.checkpoint.manifest.inventory
    any_port = asked.mode in ("auto", "fresh")
    work.forwards = forwards(inventory.published(), asked.for_clone(work.clone), any_port=any_port)
    sockets = sockets_of(work.checkpoint.images, work.client.criu, inventory=inventory)
    return plan(sockets, **work.policies)


def hold_the_ports(work: Restore) -> None:
    """A port may be lost between plan and reservation: one that cria chose is then chosen anew."""
    from cria.errors import PortTaken
    from cria.ports import PortPlan, reserve

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


def choose_where_it_lives(work: Restore) -> None:
    """Among the host's processes where its PIDs and paths are free there, else in namespaces of its own."""
    from cria.doctor import preflight
    from cria.errors import PathTaken, PidTaken
    from cria.events import Warned
    from cria.namespaces.place import Host, OwnNamespaces
    from cria.namespaces.view import make_sure_of, prepared

    work.place = Host()
    criu, manifest = work.client.criu, work.checkpoint.manifest
    images, shares_network = work.checkpoint.images, work.isolate != "net"
    view = prepared(images, manifest, work.tag(), shares_network=shares_network, criu=criu)
    if work.isolate in ("auto", "never"):
        try:
            preflight.restore(work.checkpoint, criu)
        except (PidTaken, PathTaken) as taken:
            if work.isolate == "never":
                raise
            if work.listener is not None:
                words = f"{taken.message}: the engine gets namespaces of its own"
                work.listener(Warned(message=words))
        else:
            return
    make_sure_of(own for own, _ in view.binds)
    work.unix_names = view.abstract
    work.place = OwnNamespaces(
        copy_on_write=view.copy_on_write, binds=view.binds, network=work.isolate == "net"
    )


def leave_the_place(work: Restore) -> None:
    if work.place is not None:
        work.place.leave()


def make_a_private_view(work: Restore) -> None:
    """A directory of links to the images, with a files.img of its own for the new ports."""
    import tempfile

    from cria.ports import private_view, rewrite

    work.view = Path(tempfile.mkdtemp(prefix="cria-restore-"))
    private_view(work.checkpoint.images, work.view)
    rewrite(work.view, work.plan, unix=work.unix_names, criu_binary=work.client.criu)


def remove_the_view(work: Restore) -> None:
    import shutil

    if work.view is not None:
        shutil.rmtree(work.view, ignore_errors=True)
        work.view = None


def put_its_files_back(work: Restore) -> int:
    """On the host a temporary file may be in its place still; the check before saw that it is the same."""
    from cria.namespaces.place import Host
    from cria.storage import carry, layout

    assert work.place is not None
    carried = work.checkpoint.manifest.carried
    work.placed = carry.missing(carried) if isinstance(work.place, Host) else carried
    return carry.put_back(work.placed, work.checkpoint.path / layout.CARRIED, work.place.root)


def take_its_files_away(work: Restore) -> None:
    from cria.namespaces.place import Host
    from cria.storage import carry

    if isinstance(work.place, Host):
        carry.remove(work.placed)


def restore_the_processes(work: Restore) -> int:
    """CRIU rebuilds every process; it waits, none of them running yet, when all is in place."""
    from cria.criu import log
    from cria.criu.options import restore_options
    from cria.namespaces.place import OwnNamespaces
    from cria.ports import locks

    assert work.view is not None and work.place is not None
    message = restore_options(work.client, work.checkpoint.manifest.options)
    images = os.open(work.view, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    message.images_dir_fd = images
    message.log_file = "restore.log"
    connections = locks.needed(work.checkpoint.images, work.plan, work.client.criu)
    work.locks.enter_context(locks.locked(connections, work.netns()))
    if work.reservation is not None:
        work.reservation.open()
    try:
        inside = work.place if isinstance(work.place, OwnNamespaces) else None
        with log.explained(work.view / "restore.log", during=RestoreFailed):
            work.conversation = work.client.restore(message, inside)
            work.inner_root = work.conversation.wait_for("post-restore")
        work.root = work.place.host_pid(work.inner_root)
    finally:
        os.close(images)
    return 0


def end_the_processes(work: Restore) -> None:
    from cria.process import ended
    from cria.process.tree import tree

    if work.conversation is not None:
        work.conversation.abort()
    work.locks.close()
    with suppress(NoSuchProcess):
        family = tree(work.root) if work.root else ()
        ended.kill(process.pid for process in family)
        ended.wait(family)


def check_the_ports_are_ours(work: Restore) -> None:
    """Each port now has exactly one listener, and it is a restored one: CRIU itself would not tell."""
    from cria.ports import check_owned, seal
    from cria.process.tree import tree

    # Sealed first: what the check sees then remains true when the ports are let go.
    seal(work.plan, work.netns())
    check_owned(work.plan, (process.pid for process in tree(work.root)), work.netns())
    if work.reservation is not None:
        work.reservation.release()


def let_it_run(work: Restore) -> None:
    from cria.criu import log
    from cria.namespaces import published
    from cria.namespaces.place import OwnNamespaces
    from cria.ports.locks import remove_leftovers

    assert work.view is not None and work.place is not None
    with log.explained(work.view / "restore.log", during=RestoreFailed):
        work.conversation.finish()
    work.locks.close()
    if work.checkpoint.manifest.options.network_lock != "SKIP":
        remove_leftovers(work.checkpoint.images, work.plan, work.netns(), work.client.criu)
    if isinstance(work.place, OwnNamespaces):
        published.carry(work.forwards, work.place)
    work.place.settle(work.inner_root)
    remove_the_view(work)


def let_its_requests_go_on(work: Restore) -> None:
    """An engine that was quiesced for its dump wakes up paused."""
    from cria.engine import quiesce

    quiesced = work.checkpoint.manifest.quiesced
    if quiesced is not None:
        quiesce.resume_restored(work.root, quiesced, seconds=work.wait_seconds)


def wait_until_healthy(work: Restore) -> None:
    from cria.engine import health

    published = work.checkpoint.manifest.published
    if published:
        work.url = health.url(work.reached_at(published[0]))
        health.wait_until_healthy(work.url, work.root, seconds=work.wait_seconds)


def compare_the_canary(work: Restore) -> None:
    """Before anyone is told the url: the engine computes what it computed before its dump."""
    from cria.engine import canary

    recorded = work.checkpoint.manifest.canary
    if recorded is not None and work.url is not None and work.wants_canary:
        canary.compare(work.url, recorded, seconds=work.wait_seconds)


PREPARE: tuple[Step[Restore], ...] = (
    Step("open the checkpoint", open_the_checkpoint),
    Step("find CRIU", find_criu),
    Step("check it fits", check_it_fits),
    Step("plan the ports", plan_the_ports, undo=let_the_ports_go),
    Step("hold the ports", hold_the_ports, undo=let_the_ports_go),
)
BRING_UP: tuple[Step[Restore], ...] = (
    Step("choose where it lives", choose_where_it_lives, undo=leave_the_place),
    Step("make a private view", make_a_private_view, undo=remove_the_view),
    Step("put its files back", put_its_files_back, undo=take_its_files_away),
    Step("restore the processes", restore_the_processes, undo=end_the_processes),
    # Every process exists now, none runs, and all can still be taken down without a trace.
    Step("check the ports are ours", check_the_ports_are_ours),
    Step("let it run", let_it_run),
    Step("let its requests go on", let_its_requests_go_on),
    Step("wait until healthy", wait_until_healthy),
    Step("compare the canary", compare_the_canary),
)
RESTORE_STEPS = (*PREPARE, *BRING_UP)
