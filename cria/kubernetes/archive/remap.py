"""Rewrite a checkpoint archive so that it restores on other ports: REMAP_STEPS, then their functions.

The archive is read twice: for the few images that describe its sockets, then to copy it with files.img replaced.
It is not unpacked, and it does not change.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass, field
from io import BufferedWriter
from pathlib import Path
from typing import IO, Any, cast

import msgspec

from cria.checkpoint.tar_reader import BLOCK, Malformed, resized
from cria.criu import program
from cria.criu.images.directory import CriuImages
from cria.errors import UsageError
from cria.events import Listener, OnBytes, Timings, progress
from cria.kubernetes.archive import oci, reader
from cria.kubernetes.archive.contents import NeededFile, needed_files
from cria.kubernetes.archive.oci import StagedImage
from cria.kubernetes.archive.plan import ArchivePlan, edited_files_image, plan_archive
from cria.kubernetes.archive.reader import Archive
from cria.kubernetes.archive.splice import Patch, splice, splice_files
from cria.model.socket import Policy
from cria.network.occupancy import occupants
from cria.network.requests import Asked, PortRequests
from cria.operation import Step, StepState, run_steps
from cria.system import compression
from cria.system.files import StagedFile, writing_failed


class RemapResult(msgspec.Struct, frozen=True, kw_only=True):
    """A new archive at `path`, or the directory of a container image with a `digest`.

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
    ports: PortRequests | Asked | None = None,
    other_host: bool = False,
    outside: Policy = "refuse",
    clients: Policy = "close",
    listener: Listener | None = None,
) -> RemapResult:
    """Write a copy of `archive` to `output`, a file or `oci:DIR[:TAG]`, that restores beside its original.

    `ports` are requests as for a restore ({8000: 8001}, "8000=8001"). All other ports move as well: to ports that are
    free on this host, or, for a restore on an `other_host`, without a look at this one. `outside` and `clients` say
    what happens to connections with one end in the archive. Raises a CriaError; then there is nothing at `output`.
    """
    state = RemapState(
        path=Path(archive),
        output=os.fspath(output),
        requests=port_requests(ports),
        other_host=other_host,
        outside=outside,
        clients=clients,
        listener=listener,
    )
    with state.open_files:
        timings = run_steps("remap", REMAP_STEPS, state, listener=listener)
    return RemapResult(
        path=state.staged.target,
        digest=state.digest,
        plan=state.plan,
        needs=state.needs,
        timings=timings,
    )


def plan_remap(
    archive: str | os.PathLike[str],
    *,
    ports: PortRequests | Asked | None = None,
    other_host: bool = False,
    outside: Policy = "refuse",
    clients: Policy = "close",
) -> ArchivePlan:
    """Return what `remap` would do with these arguments, and write nothing."""
    state = RemapState(
        path=Path(archive),
        output="",
        requests=port_requests(ports),
        other_host=other_host,
        outside=outside,
        clients=clients,
    )
    with state.open_files:
        run_steps("remap", PLAN_STEPS, state)
    return state.plan


def port_requests(ports: PortRequests | Asked | None) -> PortRequests:
    """Return the requests for an archive. Where they say nothing of other ports, all of these move.

    Beside the original no port could stay, and the archive may be remapped on another host than it is restored on.
    Raises UsageError for a range of new ports: an archive is one copy.
    """
    requests = ports if isinstance(ports, PortRequests) else PortRequests.parse(ports or ())
    for old, new in requests.ports.items():
        if len(new) > 1:
            raise UsageError(
                f"port {old} is asked to move to {len(new)} ports, but a new archive is one copy",
                remedy=f"write an archive for each: -p {old}={new[0]} --ports offset:100",
            )
    if requests.mode == "as-needed":
        return msgspec.structs.replace(requests, mode="fresh")
    return requests


@dataclass(kw_only=True, eq=False, repr=False)
class RemapState(StepState):
    """What is asked for, and what the steps have made of it so far. A field without a default is set by a step."""

    path: Path
    output: str
    requests: PortRequests
    other_host: bool
    outside: Policy
    clients: Policy
    listener: Listener | None = None

    open_files: ExitStack = field(default_factory=ExitStack)
    file: IO[bytes] = field(init=False)
    status: os.stat_result = field(init=False)
    criu: Path = field(init=False)
    archive: Archive = field(init=False)
    images: CriuImages = field(init=False)
    plan: ArchivePlan = field(init=False)
    needs: tuple[NeededFile, ...] = ()
    staged: StagedFile | StagedImage = field(init=False)
    digest: str = ""


def open_archive(state: RemapState) -> None:
    state.file = state.open_files.enter_context(reader.open_file(state.path))
    state.status = os.fstat(state.file.fileno())


def find_criu(state: RemapState) -> None:
    state.criu = program.find()


def read_sockets(state: RemapState) -> None:
    state.archive = reader.read(state.file, state.path)
    state.images = state.archive.criu_images(state.criu)


def plan_ports(state: RemapState) -> None:
    in_use = () if state.other_host else occupants()
    state.plan = plan_archive(
        state.archive,
        state.images,
        state.requests,
        in_use,
        outside=state.outside,
        clients=state.clients,
    )
    state.needs = needed_files(state.archive, state.images)


def stage_archive(state: RemapState) -> None:
    """Create the new archive under another name, in the directory of the output."""
    if state.output.startswith(oci.PREFIX):
        directory, tag = oci.parse_reference(state.output)
        state.staged = StagedImage(directory, tag, state.archive.compression)
    else:
        state.staged = StagedFile(Path(state.output).absolute())


def discard_archive(state: RemapState) -> None:
    if state.has("staged"):
        state.staged.discard()


def write_archive(state: RemapState) -> int:
    total = state.archive.sizes.unpacked
    moved = progress(state.listener, "write-archive", total)
    try:
        if isinstance(state.staged, StagedImage):
            _write_image(state, state.staged, moved)
        else:
            _write_file(state, state.staged.file, moved)
    except OSError as error:
        raise writing_failed(error, state.staged.target) from error
    return total


def check_unchanged(state: RemapState) -> None:
    """Raise CheckpointDamaged where the archive was written to: then the plan may be of other sockets."""
    now, then = os.fstat(state.file.fileno()), state.status
    if (now.st_size, now.st_mtime_ns) != (then.st_size, then.st_mtime_ns):
        raise reader.damaged(state.path, "it changed while it was read")


def publish_archive(state: RemapState) -> None:
    state.staged.publish()


PLAN_STEPS: tuple[Step[RemapState], ...] = (
    Step("open-archive", "open archive", open_archive),
    Step("find-criu", "find CRIU", find_criu),
    Step("read-sockets", "read sockets", read_sockets),
    Step("plan-ports", "plan ports", plan_ports),
)
REMAP_STEPS: tuple[Step[RemapState], ...] = (
    *PLAN_STEPS,
    Step("stage-archive", "stage archive", stage_archive, undo=discard_archive),
    Step("write-archive", "write archive", write_archive),
    Step("check-unchanged", "check that the old archive did not change", check_unchanged),
    Step("publish-archive", "publish archive", publish_archive),
)


def _write_file(state: RemapState, target: IO[bytes], moved: OnBytes) -> None:
    state.file.seek(0)
    kind, patch = state.archive.compression, _patch(state)
    with reader.damage_explained(state.path):
        if kind == "none":
            splice_files(state.file, target, patch, moved)
            return
        # On a disk that is nearly full write(2) takes a part and says so; compressors do not look, the buffer does.
        buffer = BufferedWriter(cast("Any", target))
        with compression.writer(buffer, kind) as stream:
            splice(compression.reader(state.file, kind), stream, patch, moved)
        buffer.flush()
        buffer.detach()


def _write_image(state: RemapState, image: StagedImage, moved: OnBytes) -> None:
    state.file.seek(0)
    with reader.damage_explained(state.path):
        source = compression.reader(state.file, state.archive.compression)
        splice(source, image.layer, _patch(state), moved)
    machine = next((process.machine for process in state.images.holders), "")
    image.finish(state.archive.origin, machine)
    state.digest = image.digest


def _patch(state: RemapState) -> Patch | None:
    """Return the patch that replaces files.img, with its header; None where the plan changes nothing."""
    content = edited_files_image(state.images, state.plan)
    if content == state.archive.images["files.img"]:
        return None
    member = state.archive.files_member
    try:
        header = resized(member, len(content))
    except Malformed as error:
        raise reader.damaged(state.path, str(error)) from error
    padding = bytes(-len(content) % BLOCK)
    return Patch(begin=member.header, end=member.end, data=header + content + padding)
