"""The checkpoint on its way from a staged directory to a published one."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cria.dump.work import Dump


def stage_the_checkpoint(work: Dump) -> None:
    from cria.storage import layout

    work.staged = layout.stage(work.output)


def discard_the_checkpoint(work: Dump) -> None:
    from cria.events import Warned
    from cria.storage import layout

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
    from cria.sharing import fold

    return bool(fold.shared_files(work.files, work.client.criu))


def take_in_what_it_shared(work: Dump) -> int:
    """The file is for one host, and for a while: a checkpoint holds all it needs."""
    from cria.sharing import fold
    from cria.storage import layout

    assert work.staged is not None
    images = work.staged / layout.IMAGES
    work.files = fold.fold(images, criu=work.client.criu)
    return layout.size_bytes(images)


def record_what_it_can_find_again(work: Dump) -> None:
    from cria.images import facts, files
    from cria.storage import layout, record

    assert work.staged is not None
    images, criu = work.staged / layout.IMAGES, work.client.criu
    remade = {remap.file_id for remap in facts.remaps(images, criu)}
    carried = {name for file in work.carried for name in file.every_name}
    read = record.wanted(files.regular_files(work.files, criu), remade, carried)
    work.recorded = record.record(read | set(work.its_model_files), work.its_root)


def make_its_memory_lean(work: Dump) -> int:
    """Zero pages are left out where that pays; with `compress` all memory is put into frames."""
    from cria.events import progress
    from cria.images import memory
    from cria.pages import lean, stored
    from cria.storage import layout

    assert work.staged is not None
    images, criu = work.staged / layout.IMAGES, work.client.criu
    before = layout.size_bytes(images)
    known = [memory.read(images, pid, criu) for pid in memory.pids(images)]
    if work.compress:
        told = progress(work.listener, "make its memory lean", before)
        aside = work.staged / layout.MEMORY
        aside.mkdir(mode=layout.PRIVATE)
        for each in known:
            stored.take_aside(images, aside, each, told, criu)
        stored.compress_rest(images, told)
    else:
        for each in known:
            lean.make_lean(images, each, criu)
    return before


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
        gpu_state=work.gpu_state,
    )
    write(work.manifest, work.staged / layout.MANIFEST)


def publish_it(work: Dump) -> None:
    from cria.storage import layout

    assert work.staged is not None
    try:
        layout.publish(work.staged, work.output)
    finally:  # it may have got its name before what went wrong
        work.published = not work.staged.exists()


def take_it_back(work: Dump) -> None:
    """Not once the engine has ended, or lost its GPUs: then the checkpoint is all there is of it."""
    from cria.process import ended

    ended_by_us = not work.leave_running and ended.wait([work.inventory.root])
    gone = ended_by_us or work.lost is not None
    if work.published and work.staged is not None and not gone:
        work.output.rename(work.staged)
