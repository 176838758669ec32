"""Checkpoint a container through its node's kubelet: CHECKPOINT_STEPS, then the words they are written in."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import msgspec

from cria.errors import CheckpointDamaged, CheckpointTimedOut, CriaError, DumpFailed
from cria.events import Listener, Warned, nobody
from cria.kubernetes.archive import reader as archives
from cria.kubernetes.kubelet import manifests
from cria.kubernetes.kubelet.cluster import Cluster
from cria.kubernetes.kubelet.manifests import ArchiveManifest, VerifiedArchive
from cria.kubernetes.kubelet.pods import ContainerRef, RunningContainer, find_running, parse
from cria.kubernetes.kubelet.quiesce import (
    ContainerQuiesceSession,
    QuiesceOptions,
    quiesce_session,
    thaw,
)
from cria.model.manifest import now
from cria.model.version import VERSION
from cria.operation import Step, Stopwatch, run_steps

DUMPING = "checkpoint-container"
TIMEOUT_SECONDS = 1800  # a call that is broken off is worse than one that takes long


class CheckpointOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How containers are checkpointed: each may take `timeout_seconds` on its node.

    `archives` is where the kubelet's directory of archives is seen from here, where that is not its own
    path; `manifests` where manifests go, where that is not beside the archives.
    """

    quiesce: QuiesceOptions = QuiesceOptions()
    timeout_seconds: int = TIMEOUT_SECONDS
    archives: Path | None = None
    manifests: Path | None = None


class ContainerCheckpoint(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it; `manifest_path` is where the manifest was written, None where that was not possible."""

    manifest: ArchiveManifest
    manifest_path: str | None


@dataclass(kw_only=True)
class CheckpointState:
    """What the steps of one checkpoint know and hand on."""

    cluster: Cluster
    place: ContainerRef
    options: CheckpointOptions
    tell: Listener
    stopwatch: Stopwatch = field(default_factory=Stopwatch)

    found: RunningContainer = field(init=False)
    gate: threading.Lock = field(default_factory=threading.Lock)
    given_up: bool = False
    still: ContainerQuiesceSession | None = None
    archive: str = field(init=False)
    checked: VerifiedArchive | None = None
    not_checked: str | None = None
    manifest_path: str | None = None


def checkpoint(
    place: str | ContainerRef,
    *,
    cluster: Cluster | None = None,
    options: CheckpointOptions | None = None,
    listener: Listener | None = None,
) -> ContainerCheckpoint:
    """Checkpoint the container at NAMESPACE/POD/CONTAINER on its node, at a still point of its engines.

    Whatever happens, they go on afterwards. Raises a CriaError; where the archive can be read from here
    and is not whole, also after the node has written it.
    """
    cluster = cluster or Cluster(listener=listener)
    return run(begin(place, cluster=cluster, options=options, tell=listener))


def begin(
    place: str | ContainerRef,
    *,
    cluster: Cluster,
    options: CheckpointOptions | None,
    tell: Listener | None,
) -> CheckpointState:
    place = parse(place) if isinstance(place, str) else place
    return CheckpointState(
        cluster=cluster, place=place, options=options or CheckpointOptions(), tell=tell or nobody
    )


def run(work: CheckpointState) -> ContainerCheckpoint:
    """All steps for one container. Raises a CriaError; its engines were then told to go on."""
    run_steps("checkpoint", CHECKPOINT_STEPS, work, listener=work.tell, stopwatch=work.stopwatch)
    return ContainerCheckpoint(manifest=describe(work), manifest_path=work.manifest_path)


def find(work: CheckpointState) -> None:
    work.found = find_running(work.cluster.pod(work.place), work.place.container)


def pause(work: CheckpointState) -> int | None:
    work.still = quiesce_session(work.cluster, work.found, work.options.quiesce, work.tell)
    return work.still.pause()


def resume(work: CheckpointState) -> None:
    if work.still is not None:
        work.still.resume()


def give_up(work: CheckpointState) -> None:
    """From now on its node is not asked any more, if it was not asked yet."""
    with work.gate:
        work.given_up = True


def ask_the_node(work: CheckpointState) -> None:
    with work.gate:
        if work.given_up:
            raise interrupted(work)
    try:
        work.archive = work.cluster.checkpoint(work.found, seconds=work.options.timeout_seconds)
    except BaseException as error:
        # Broken off, it may be left frozen: then not even a lease lets its engine go on. Where the node has
        # answered, somebody else may be at it.
        answered = isinstance(error, CriaError) and not isinstance(error, CheckpointTimedOut)
        if not answered and thaw(work.found):
            work.tell(Warned(message=f"{work.found} was left frozen; it runs again"))
        raise


def interrupted(work: CheckpointState) -> DumpFailed:
    return DumpFailed(f"{work.place} was not checkpointed", details="cria was told to end before")


def check(work: CheckpointState) -> int | None:
    """Read the archive, where it is to be had: on the node, or where its directory is mounted."""
    path = seen_at(work.archive, work.options.archives)
    try:
        with archives.open_file(path) as file:
            archive = archives.read(file, path)
    except CriaError as error:
        if not isinstance(error.__cause__, FileNotFoundError | PermissionError):
            raise
        work.not_checked = f"it is on node {work.found.node}: {path}: {error.__cause__.strerror}"
        return None
    _same_container(archive.origin.container_id, work.found, path)
    work.checked = VerifiedArchive(
        path=str(path),
        bytes=archive.sizes.archive,
        pages_bytes=archive.sizes.pages,
        runtime=archive.origin.runtime,
        oci_runtime=archive.origin.oci_runtime,
        checkpointed=archive.origin.checkpointed,
    )
    return archive.sizes.archive


def seen_at(archive: str, directory: Path | None) -> Path:
    """Where an archive of the node's is to be looked for from here. Raises CheckpointDamaged."""
    path = PurePosixPath(archive)
    if not path.is_absolute() or ".." in path.parts or "\0" in archive:
        raise CheckpointDamaged(
            "the node names an archive in a way that could lead anywhere",
            details=repr(archive[:200]),
            remedy="see whether it is a kubelet that answers there",
        )
    return directory / path.name if directory else Path(path)


def record(work: CheckpointState) -> None:
    directory = work.options.manifests
    if directory is None and work.checked is not None:
        directory = Path(work.checked.path).parent
    if directory is None:
        words = f"the archive of {work.found} was not checked: {work.not_checked}"
        cure = "run cria on the node; to keep a manifest all the same: --manifests DIR"
        work.tell(Warned(message=words, remedy=cure))
        return
    work.manifest_path = str(manifests.write(describe(work), directory))


def describe(work: CheckpointState) -> ArchiveManifest:
    assert work.still is not None
    return ArchiveManifest(
        cria_version=VERSION,
        created=now(),
        container=work.found,
        archive=work.archive,
        via=work.cluster.via,
        timeout_seconds=work.options.timeout_seconds,
        still=work.still.still,
        checked=work.checked,
        not_checked=work.not_checked,
        timings=work.stopwatch.read(),
    )


def _same_container(container_id: str, found: RunningContainer, path: Path) -> None:
    if container_id and found.container_id and container_id != found.container_id:
        raise CheckpointDamaged(
            f"{os.fspath(path)} is the archive of another container",
            details=f"of {container_id}; {found} is {found.container_id}",
            remedy=f"checkpoint it again: cria kubernetes checkpoint {found}",
        )


CHECKPOINT_STEPS = (
    Step("find-container", "find container", find),
    Step("quiesce-engine", "quiesce engine", pause, resume),
    Step(DUMPING, "have the kubelet checkpoint the container", ask_the_node),
    Step("resume-engine", "resume engine", resume),
    Step("check-archive", "check archive", check),
    Step("write-record", "write record beside the archive", record),
)
