"""The checkpoint on its way from a staged directory to a published one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cria.model.manifest import IMAGES, MANIFEST, MEMORY
from cria.model.version import VERSION

if TYPE_CHECKING:
    from cria.operations.dump.state import Dump


def stage_the_checkpoint(work: Dump) -> None:
    from cria.checkpoint import layout

    work.staged = layout.stage(work.output)


def discard_the_checkpoint(work: Dump) -> None:
    from cria.checkpoint import layout
    from cria.events import Warned

    if work.staged is None:
        return
    if work.lost is not None and not work.published:  # its images are all there is of the engine
        words = f"the checkpoint was not finished; its images are kept: {work.staged}"
        if work.listener is not None:
            work.listener(Warned(message=words))
        return
    layout.discard(work.staged)


def shared_memory(work: Dump) -> bool:
    """Whether it is a clone that has some of its memory in a file that others map too."""
    from cria.memory.shared import materialize

    return bool(materialize.shared_files(work.files, work.client.criu))


def take_in_what_it_shared(work: Dump) -> int:
    """The file is for one host, and for a while: a checkpoint holds all it needs."""
    from cria.checkpoint import layout
    from cria.memory.shared import materialize

    assert work.staged is not None
    images = work.staged / IMAGES
    work.files = materialize.fold(images, criu=work.client.criu)
    return layout.size_bytes(images)


def record_what_it_can_find_again(work: Dump) -> None:
    from cria.checkpoint import fingerprints
    from cria.criu.images import files, summary

    assert work.staged is not None
    images, criu = work.staged / IMAGES, work.client.criu
    remade = {remap.file_id for remap in summary.remaps(images, criu)}
    carried = {name for file in work.carried for name in file.every_name}
    read = fingerprints.wanted(files.regular_files(work.files, criu), remade, carried)
    work.recorded = fingerprints.record(read | set(work.its_model_files), work.its_root)


def compresses(work: Dump) -> bool:
    return work.compress


def is_plain(work: Dump) -> bool:
    return not work.compress


def compress_pages(work: Dump) -> int:
    """All memory is put into frames, and what is left of the images compressed."""
    from cria.checkpoint import layout
    from cria.criu.images import memory
    from cria.events import progress
    from cria.memory import compressed

    assert work.staged is not None
    images, criu = work.staged / IMAGES, work.client.criu
    before = layout.size_bytes(images)
    known = [memory.read(images, pid, criu) for pid in memory.pids(images)]
    told = progress(work.listener, "compress-pages", before)
    aside = work.staged / MEMORY
    aside.mkdir(mode=layout.PRIVATE)
    for each in known:
        compressed.take_aside(images, aside, each, told, criu)
    compressed.compress_rest(images, told)
    return before


def drop_zero_pages(work: Dump) -> int:
    """Zero pages are left out where that pays."""
    from cria.checkpoint import layout
    from cria.criu.images import memory
    from cria.memory import zero_pages

    assert work.staged is not None
    images, criu = work.staged / IMAGES, work.client.criu
    before = layout.size_bytes(images)
    for each in [memory.read(images, pid, criu) for pid in memory.pids(images)]:
        zero_pages.make_lean(images, each, criu)
    return before


def digest_every_part(work: Dump) -> int:
    """Also through to the disk: a digest that is known while the part can still be lost is worth little.

    An engine that ends stands still meanwhile, for it may only end when its checkpoint is whole and
    has its name. One that lives on was let go before.
    """
    from cria.checkpoint import layout
    from cria.events import progress
    from cria.system import digests

    assert work.staged is not None
    names = layout.parts(work.staged)
    total = sum((work.staged / name).stat().st_size for name in names)
    told = progress(work.listener, "digest-parts", total)
    work.parts = digests.parts(work.staged, names, told)
    return total


def describe_it(work: Dump) -> None:
    from cria.model.manifest import Manifest, now, write
    from cria.system.host import this_host

    assert work.staged is not None
    work.manifest = Manifest(
        cria_version=VERSION,
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
        gpu_state=work.gpu_state,
    )
    write(work.manifest, work.staged / MANIFEST)


def publish_it(work: Dump) -> None:
    from cria.checkpoint import layout

    assert work.staged is not None
    try:
        layout.publish(work.staged, work.output)
    finally:  # it may have got its name before what went wrong
        work.published = not work.staged.exists()


def take_it_back(work: Dump) -> None:
    """Not once the engine has ended, or lost its GPUs: then the checkpoint is all there is of it."""
    from cria.system import processes

    ended_by_us = not work.leave_running and processes.wait_for_exit([work.inventory.root])
    gone = ended_by_us or work.lost is not None
    if work.published and work.staged is not None and not gone:
        work.output.rename(work.staged)
