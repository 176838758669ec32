"""Rewrite a checkpoint archive so that it restores on other ports: REMAP_STEPS, then their words.

The archive is read twice: once for the few images that tell its sockets, once to be passed on with
files.img replaced. Nothing of it is unpacked, and it is not changed.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass, field
from io import BufferedWriter
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import msgspec

from cria.kubernetes.archive import oci
from cria.kubernetes.archive import reader as archives
from cria.kubernetes.archive.reader import Archive
from cria.kubernetes.archive.splice import Patch, splice, splice_files
from cria.operation import Step, run_steps

if TYPE_CHECKING:
    from cria.criu.images.directory import CriuImages
    from cria.events import Listener, OnBytes, Timings
    from cria.kubernetes.archive.contents import NeededFile
    from cria.kubernetes.archive.oci import StagedImage
    from cria.kubernetes.archive.plan import ArchivePlan
    from cria.network.requests import PortRequests
    from cria.system.files import StagedFile


class RemapResult(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it: `path` is the new archive, or the directory of the image with `digest`.

    `needs` are the files that the pod's volumes must hold for its restore.
    """

    path: Path
    digest: str
    plan: ArchivePlan
    needs: tuple[NeededFile, ...]
    timings: Timings


def remap(
    archive: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    ports: Any = None,
    elsewhere: bool = False,
    outside: str = "refuse",
    clients: str = "close",
    listener: Listener | None = None,
) -> RemapResult:
    """Write `archive` anew at `output`, a file or `oci:DIR`, so that it restores beside its original.

    `ports` are wishes as for a restore ({8000: 8001}, "8000=8001"); the others move to free ports of
    this host, or without a look at this host where it is to be restored `elsewhere`. Raises a
    CriaError; then there is nothing at `output`.
    """
    work = RemapState(
        path=Path(archive),
        output=os.fspath(output),
        wishes=port_requests(ports),
        elsewhere=elsewhere,
        policies={"outside": outside, "clients": clients},
        listener=listener,
    )
    with work.held:
        timings = run_steps("remap", REMAP_STEPS, work, listener=listener)
    return RemapResult(
        path=work.staged.target,
        digest=work.digest,
        plan=work.plan,
        needs=work.needs,
        timings=timings,
    )


def plan_remap(
    archive: str | os.PathLike[str],
    *,
    ports: Any = None,
    elsewhere: bool = False,
    outside: str = "refuse",
    clients: str = "close",
) -> ArchivePlan:
    """What `remap` would do with the same words; nothing is written."""
    work = RemapState(
        path=Path(archive),
        output="",
        wishes=port_requests(ports),
        elsewhere=elsewhere,
        policies={"outside": outside, "clients": clients},
    )
    with work.held:
        run_steps("remap", REMAP_STEPS[:PLANNED], work)
    return work.plan


def port_requests(ports: Any) -> PortRequests:
    """What is asked of the ports. Where nothing is said of the others, all of them move.

    Beside the original none could stay; and who remaps an archive may not be where that is. Raises
    UsageError for a range: one archive is one copy.
    """
    from cria.errors import UsageError
    from cria.network.requests import PortRequests

    asked = ports if isinstance(ports, PortRequests) else PortRequests.parse(ports or ())
    for old, new in asked.ports.items():
        if len(new) > 1:
            raise UsageError(
                f"port {old} is asked to move to {len(new)} places, and a new archive is one copy",
                remedy=f"write an archive for each: -p {old}={new[0]} --ports offset:100",
            )
    return msgspec.structs.replace(asked, mode="fresh") if asked.mode == "as-needed" else asked


@dataclass(kw_only=True)
class RemapState:
    """What the steps of one rewriting know and hand on."""

    path: Path
    output: str
    wishes: PortRequests
    elsewhere: bool
    policies: dict[str, str]
    listener: Listener | None = None

    held: ExitStack = field(default_factory=ExitStack)
    file: IO[bytes] = field(init=False)
    stood: os.stat_result = field(init=False)
    criu: Path = field(init=False)
    archive: Archive = field(init=False)
    images: CriuImages = field(init=False)
    plan: ArchivePlan = field(init=False)
    needs: tuple[NeededFile, ...] = ()
    staged: StagedFile | StagedImage = field(init=False)
    begun: bool = False
    digest: str = ""


# The steps ------------------------------------------------------------------------------------


def open_the_archive(work: RemapState) -> None:
    work.file = work.held.enter_context(archives.open_file(work.path))
    work.stood = os.fstat(work.file.fileno())


def find_criu(work: RemapState) -> None:
    from cria.criu import program

    work.criu = program.find()


def read_its_sockets(work: RemapState) -> None:
    work.archive = archives.read(work.file, work.path)
    work.images = work.archive.criu_images(work.criu)


def plan_the_ports(work: RemapState) -> None:
    from cria.kubernetes.archive.contents import needed_files
    from cria.kubernetes.archive.plan import plan_archive
    from cria.network.occupancy import occupants

    in_use = () if work.elsewhere else occupants()
    work.plan = plan_archive(work.archive, work.images, work.wishes, in_use, **work.policies)
    work.needs = needed_files(work.archive, work.images)


def begin_the_new_one(work: RemapState) -> None:
    """Beside its place and under another name."""
    from cria.system.files import StagedFile

    if work.output.startswith(oci.PREFIX):
        directory, tag = oci.parse_reference(work.output)
        work.staged = oci.StagedImage(directory, tag, work.archive.compression)
    else:
        work.staged = StagedFile(Path(work.output).absolute())
    work.begun = True


def remove_the_new_one(work: RemapState) -> None:
    if work.begun:
        work.staged.discard()


def write_it(work: RemapState) -> int:
    from cria.events import progress
    from cria.system.files import writing_failed

    total = work.archive.sizes.unpacked
    moved = progress(work.listener, "write-archive", total)
    try:
        if isinstance(work.staged, oci.StagedImage):
            _write_image(work, work.staged, moved)
        else:
            _write_file(work, work.staged.file, moved)
    except OSError as error:
        raise writing_failed(error, work.staged.target) from error
    return total


def see_that_it_stood_still(work: RemapState) -> None:
    """What was planned is only true of what was then passed on when nobody wrote to the archive."""
    now, then = os.fstat(work.file.fileno()), work.stood
    if (now.st_size, now.st_mtime_ns) != (then.st_size, then.st_mtime_ns):
        raise archives.damaged(work.path, "it was changed while it was read")


def give_it_its_name(work: RemapState) -> None:
    work.staged.publish()


REMAP_STEPS: tuple[Step[RemapState], ...] = (
    Step("open-archive", "open archive", open_the_archive),
    Step("find-criu", "find CRIU", find_criu),
    Step("read-sockets", "read sockets", read_its_sockets),
    Step("plan-ports", "plan ports", plan_the_ports),
    Step("stage-archive", "stage archive", begin_the_new_one, undo=remove_the_new_one),
    Step("write-archive", "write archive", write_it),
    Step("check-unchanged", "check that the old archive did not change", see_that_it_stood_still),
    Step("publish-archive", "publish archive", give_it_its_name),
)
PLANNED = 4


def _write_file(work: RemapState, sink: IO[bytes], moved: OnBytes) -> None:
    from cria.system import compression as compressed

    work.file.seek(0)
    compression, patch = work.archive.compression, _patch(work)
    with archives.explain_damage(work.path):
        if compression == "none":
            splice_files(work.file, sink, patch, moved)
            return
        # A disk that is nearly full takes a part of what is written and says so; only the buffer looks.
        buffer = BufferedWriter(cast("Any", sink))
        with compressed.writer(buffer, compression) as stream:
            splice(compressed.reader(work.file, compression), stream, patch, moved)
        buffer.flush()
        buffer.detach()


def _write_image(work: RemapState, image: StagedImage, moved: OnBytes) -> None:
    from cria.system import compression as compressed

    work.file.seek(0)
    with archives.explain_damage(work.path):
        source = compressed.reader(work.file, work.archive.compression)
        splice(source, image.layer, _patch(work), moved)
    machine = next((each.machine for each in work.images.holders), "")
    image.finish(work.archive.origin, machine)
    work.digest = image.digest


def _patch(work: RemapState) -> Patch | None:
    """files.img as planned, in the place of the one that is there; None where nothing changes."""
    from cria.checkpoint.tar_reader import BLOCK, Malformed, resized
    from cria.kubernetes.archive.plan import edited

    content, member = edited(work.images, work.plan), work.archive.files
    if content == work.archive.images["files.img"]:
        return None
    try:
        header = resized(member, len(content))
    except Malformed as error:
        raise archives.damaged(work.path, str(error)) from error
    padding = bytes(-len(content) % BLOCK)
    return Patch(begin=member.header, end=member.end, data=header + content + padding)
