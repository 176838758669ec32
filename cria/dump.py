"""Dump an engine: the whole operation is the list DUMP_STEPS; the functions below it are its words."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cria.checkpoint import Checkpoint
from cria.errors import CriaError, DumpFailed
from cria.operation import Step, Stopwatch, run_steps

if TYPE_CHECKING:
    from cria.engine.quiesce import StillPoint
    from cria.events import Listener
    from cria.inventory import Inventory
    from cria.manifest import CarriedFile, DumpOptions, Inflight, Manifest, Part, RecordedFile


def dump(
    target: int | None = None,
    output: str | os.PathLike[str] = "checkpoint",
    *,
    port: int | None = None,
    leave_running: bool = False,
    any_process: bool = False,
    skip_in_flight: bool = False,
    canary: bool = True,
    inflight: Inflight | None = "keep",
    quiesce_seconds: float = 60.0,
    listener: Listener | None = None,
) -> Checkpoint:
    """Dump the engine that `target` (any of its PIDs) belongs to into the new directory `output`.

    Without a target the engine is found by its HTTP `port`, or is the only one on this host. The
    engine ends, unless `leave_running`. `any_process` also takes a process tree that is no vLLM
    engine. With `canary` it generates a few tokens before, for every restore to compare with. It is
    brought to a still point first, requests `inflight` kept, drained or aborted; None leaves it as it is.
    Raises a CriaError; the engine then runs on and `output` does not exist.
    """
    work = Dump(
        target=target,
        port=port,
        output=Path(output).absolute(),
        leave_running=leave_running,
        any_process=any_process,
        skip_in_flight=skip_in_flight,
        wants_canary=canary,
        inflight=inflight,
        quiesce_seconds=quiesce_seconds,
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
    work = Dump(target=target, port=port, output=Path(output).absolute(), any_process=any_process)
    for step in (find_the_engine, find_criu, take_its_inventory, check_it_can_be_dumped):
        step(work)
    return work.inventory


@dataclass(kw_only=True)
class Dump:
    """What the steps of one dump know and hand on."""

    target: int | None
    port: int | None
    output: Path
    leave_running: bool = False
    any_process: bool = False
    skip_in_flight: bool = False
    wants_canary: bool = True
    inflight: Inflight | None = "keep"
    quiesce_seconds: float = 60.0
    listener: Listener | None = None
    stopwatch: Stopwatch = field(default_factory=Stopwatch)

    root: int = 0
    lock: int | None = None
    inventory: Inventory = field(init=False)
    client: Any = None
    criu_version: str = ""
    canary: Any = None
    no_canary: str | None = None
    still: StillPoint | None = None
    options: DumpOptions = field(init=False)
    staged: Path | None = None
    conversation: Any = None
    its_root: Path = Path("/")
    its_stores: tuple[str, ...] = ()
    its_temporary_files: tuple[str, ...] = ()
    its_model_files: tuple[str, ...] = ()
    published: bool = False
    files: Any = None
    carried: tuple[CarriedFile, ...] = ()
    recorded: tuple[RecordedFile, ...] = ()
    parts: tuple[Part, ...] = ()
    manifest: Manifest = field(init=False)


# The steps ------------------------------------------------------------------------------------


def find_the_engine(work: Dump) -> None:
    from cria.engine import discover
    from cria.process.tree import tree

    if work.any_process and work.target is not None:
        work.root = tree(work.target)[0].pid
    else:
        work.root = discover.find(work.target, port=work.port)


def lock_it(work: Dump) -> None:
    from cria.engine.lock import lock

    work.lock = lock(work.root)


def unlock_it(work: Dump) -> None:
    if work.lock is not None:
        os.close(work.lock)
        work.lock = None


def find_criu(work: Dump) -> None:
    from cria.criu import binary
    from cria.criu.client import Client

    criu = binary.find()
    work.criu_version = ".".join(map(str, binary.require(criu)))
    work.client = Client(criu)


def take_its_inventory(work: Dump) -> None:
    from cria.engine.take import take

    work.inventory = take(work.root, any_process=work.any_process)


def check_it_can_be_dumped(work: Dump) -> None:
    from cria.doctor import preflight

    preflight.dump(work.inventory, work.output)


def record_the_canary(work: Dump) -> None:
    from cria.engine import canary

    work.canary, work.no_canary = canary.before_dump(work.inventory, wanted=work.wants_canary)


def find_its_files(work: Dump) -> None:
    """Those that the images will not tell of; looked for while the engine still runs."""
    from cria.engine import belongings

    work.its_stores = belongings.file_stores(work.inventory)
    work.its_temporary_files = belongings.temporary_files(work.inventory)
    work.its_model_files = belongings.model_files(work.inventory)


def stage_the_checkpoint(work: Dump) -> None:
    from cria.storage import layout

    work.staged = layout.stage(work.output)


def discard_the_checkpoint(work: Dump) -> None:
    from cria.storage import layout

    if work.staged is not None:
        layout.discard(work.staged)


def pause_the_engine(work: Dump) -> None:
    from cria.engine.quiesce import StillPoint

    limit, tell = work.quiesce_seconds, work.listener
    work.still = StillPoint(work.inventory, work.inflight, seconds=limit, listener=tell)
    work.still.pause()


def resume_the_engine(work: Dump) -> None:
    if work.still is not None:
        work.still.resume()


def drop_what_can_be_made_again(work: Dump) -> int | None:
    assert work.still is not None
    return work.still.drop()


def freeze_and_write_memory(work: Dump) -> int:
    """CRIU seizes every process and writes the images; it waits, all frozen, when they are whole."""
    from cria.criu import log
    from cria.criu.options import dump_options
    from cria.namespaces.place import NamespacesOf, is_elsewhere
    from cria.storage import layout

    assert work.staged is not None
    work.options, message = dump_options(
        work.client, work.inventory, work.staged, leave_running=work.leave_running
    )
    inside = NamespacesOf(work.root) if is_elsewhere(work.root) else None
    message.pid = inside.inner_pid if inside else work.root
    work.its_root = inside.root if inside else Path("/")
    message.tcp_skip_in_flight = work.skip_in_flight
    images = os.open(work.staged / layout.IMAGES, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    message.images_dir_fd = images
    message.log_file = layout.DUMP_LOG
    try:
        with log.explained(work.staged / layout.IMAGES / layout.DUMP_LOG, during=DumpFailed):
            work.conversation = work.client.dump(message, inside)
            work.conversation.wait_for("post-dump")
    finally:
        os.close(images)
    return layout.size_bytes(work.staged / layout.IMAGES)


def let_it_run_on(work: Dump) -> None:
    if work.conversation is not None:
        work.conversation.abort()


def carry_its_files(work: Dump) -> int:
    """Shared memory, link remaps, stores and temporary files: with the memory they are one moment."""
    from cria.images import facts, files
    from cria.storage import carry, layout

    assert work.staged is not None
    images, criu = work.staged / layout.IMAGES, work.client.criu
    work.files = files.read(images)
    remapped = {remap.file_id for remap in facts.remaps(images, criu)}
    opened = files.regular_files(work.files, criu)
    paths = carry.wanted(file.path for file in opened if file.file_id not in remapped)
    temporary = [path for path in map(Path, work.its_temporary_files) if path not in paths]
    work.carried = carry.store(
        [*paths, *map(Path, work.its_stores), *temporary],
        work.staged / layout.CARRIED,
        work.its_root,
        temporary=temporary,
    )
    return sum(file.stored_bytes for file in work.carried)


def check_the_images(work: Dump) -> None:
    """CRIU can leave out listeners without a word (its issue 2764): compare with what we saw."""
    from cria.images import complete

    complete.check(work.files, work.inventory.listeners(), work.client.criu)


def resume_it_if_it_lives_on(work: Dump) -> None:
    """What is left to do needs the disk only, and takes as long as reading the checkpoint once."""
    if work.leave_running:
        _finish(work)
        resume_the_engine(work)


def record_what_it_can_find_again(work: Dump) -> None:
    from cria.images import facts, files
    from cria.storage import layout, record

    assert work.staged is not None
    images, criu = work.staged / layout.IMAGES, work.client.criu
    remade = {remap.file_id for remap in facts.remaps(images, criu)}
    carried = {name for file in work.carried for name in file.every_name}
    read = record.wanted(files.regular_files(work.files, criu), remade, carried)
    work.recorded = record.record(read | set(work.its_model_files), work.its_root)


def digest_every_part(work: Dump) -> int:
    """Also through to the disk: a digest that is known while the part can still be lost is worth little.

    An engine that ends stands still meanwhile, for it may only end when its checkpoint is whole and
    has its name. One that lives on was let go before.
    """
    from cria.events import progress
    from cria.storage import digests, layout

    assert work.staged is not None
    names = layout.parts(work.staged)
    total = sum((work.staged / name).stat().st_size for name in names)
    told = progress(work.listener, "digest every part", total)
    work.parts = digests.parts(work.staged, names, told)
    return total


def describe_it(work: Dump) -> None:
    from cria.manifest import Manifest, cria_version, now, write
    from cria.process.cpu import this_host
    from cria.storage import layout

    assert work.staged is not None
    work.manifest = Manifest(
        cria_version=cria_version(),
        created=now(),
        host=this_host(),
        criu_version=work.criu_version,
        options=work.options,
        inventory=work.inventory,
        published=tuple(s.local for s in work.inventory.published()),
        carried=work.carried,
        parts=work.parts,
        recorded=work.recorded,
        timings=work.stopwatch.read(),
        canary=work.canary,
        no_canary=work.no_canary,
        quiesced=work.still.quiesced if work.still else None,
        no_quiesce=work.still.why_not if work.still else None,
    )
    write(work.manifest, work.staged / layout.MANIFEST)


def publish_it(work: Dump) -> None:
    from cria.storage import layout

    assert work.staged is not None
    layout.publish(work.staged, work.output)
    work.published = True


def take_it_back(work: Dump) -> None:
    """Not once the engine has ended: then the checkpoint is all there is of it."""
    from cria.process import ended

    gone = not work.leave_running and ended.wait([work.inventory.root])
    if work.published and work.staged is not None and not gone:
        work.output.rename(work.staged)


def end_it_unless_it_lives_on(work: Dump) -> None:
    """A clone's PID namespace ends with its root, and takes CRIU with it before it can say so."""
    from cria.process import ended

    try:
        if not work.leave_running:
            _finish(work)
    except CriaError:
        if not ended.wait([work.inventory.root]):
            raise


def _finish(work: Dump) -> None:
    """CRIU was told when it was called whether it shall end the engine or let it run."""
    from cria.criu import log
    from cria.storage import layout

    place = (None if work.published else work.staged) or work.output
    with log.explained(place / layout.IMAGES / layout.DUMP_LOG, during=DumpFailed):
        work.conversation.finish()


def clear_what_it_left(work: Dump) -> None:
    from cria.engine import leftovers
    from cria.process import ended

    if not work.leave_running:
        ended.wait(work.inventory.processes)
        owned = (file for file in work.carried if file.owned)
        leftovers.clear(work.inventory, [name for file in owned for name in file.every_name])
    unlock_it(work)


DUMP_STEPS: tuple[Step[Dump], ...] = (
    Step("find the engine", find_the_engine),
    Step("lock it", lock_it, undo=unlock_it),
    Step("find CRIU", find_criu),
    Step("take its inventory", take_its_inventory),
    Step("check it can be dumped", check_it_can_be_dumped),
    Step("record the canary", record_the_canary),
    Step("find its files", find_its_files),
    Step("stage the checkpoint", stage_the_checkpoint, undo=discard_the_checkpoint),
    Step("pause the engine", pause_the_engine, undo=resume_the_engine),
    Step("drop what can be made again", drop_what_can_be_made_again),
    Step("freeze and write memory", freeze_and_write_memory, undo=let_it_run_on),
    # From here the engine stands still and can still be let go: to one of the two steps that say how it goes on.
    Step("carry its files", carry_its_files),
    Step("check the images", check_the_images),
    Step("resume it, if it lives on", resume_it_if_it_lives_on),
    Step("record what it can find again", record_what_it_can_find_again),
    Step("digest every part", digest_every_part),
    Step("describe it", describe_it),
    Step("publish it", publish_it, undo=take_it_back),
    Step("end it, unless it lives on", end_it_unless_it_lives_on),
    Step("clear what it left", clear_what_it_left),
)
