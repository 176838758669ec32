"""Checkpoint a container through its node's kubelet: CHECKPOINT_STEPS, then their functions."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import msgspec

from cria.errors import CheckpointDamaged, CheckpointTimedOut, CriaError, DumpFailed
from cria.events import Listener, Warned, nobody
from cria.kubernetes.archive import reader
from cria.kubernetes.kubelet import manifests
from cria.kubernetes.kubelet.cluster import Cluster
from cria.kubernetes.kubelet.local_container import thaw
from cria.kubernetes.kubelet.manifests import ArchiveManifest, VerifiedArchive
from cria.kubernetes.kubelet.pods import ContainerRef, RunningContainer, find_running
from cria.kubernetes.kubelet.quiesce import (
    ContainerQuiesceSession,
    QuiesceOptions,
    quiesce_session,
)
from cria.model.manifest import now
from cria.model.version import VERSION
from cria.operation import Step, StepState, Stopwatch, run_steps

REQUEST_CHECKPOINT = "checkpoint-container"
# Longer than any dump takes: containerd leaves a container frozen when the request is cancelled.
TIMEOUT_SECONDS = 1800


class CheckpointOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How to checkpoint containers. Each may take `timeout_seconds` on its node.

    `archives` is where the kubelet's directory of archives is mounted here, where that is not its own path;
    `manifests` is where manifests are written, where that is not beside the archives.
    """

    quiesce: QuiesceOptions = QuiesceOptions()
    timeout_seconds: int = TIMEOUT_SECONDS
    archives: Path | None = None
    manifests: Path | None = None


class ContainerCheckpoint(msgspec.Struct, frozen=True, kw_only=True):
    """The checkpoint of a container. `manifest_path` is None where the archive cannot be seen from here."""

    manifest: ArchiveManifest
    manifest_path: str | None


@dataclass(kw_only=True, eq=False, repr=False)
class CheckpointState(StepState):
    """What is asked for, and what the steps have made of it so far. A field without a default is set by a step."""

    ref: ContainerRef
    cluster: Cluster
    options: CheckpointOptions
    listener: Listener = nobody
    stopwatch: Stopwatch = field(default_factory=Stopwatch)

    container: RunningContainer = field(init=False)
    session: ContainerQuiesceSession = field(init=False)
    archive: str = field(init=False)
    verified: VerifiedArchive | None = None
    not_verified: str | None = None
    manifest_path: str | None = None

    _cancelled: bool = field(init=False, default=False)
    _lock: threading.Lock = field(init=False, default_factory=threading.Lock)

    def cancel(self) -> None:
        """Do not send the request to the node, unless it is sent already."""
        with self._lock:
            self._cancelled = True

    def raise_if_cancelled(self) -> None:
        """Raise DumpFailed after `cancel`."""
        with self._lock:
            if self._cancelled:
                raise DumpFailed(
                    f"{self.ref} was not checkpointed", details="cria was interrupted before"
                )

    @property
    def manifest(self) -> ArchiveManifest:
        return ArchiveManifest(
            cria_version=VERSION,
            created=now(),
            container=self.container,
            archive=self.archive,
            server=self.cluster.server,
            timeout_seconds=self.options.timeout_seconds,
            quiesce=self.session.record,
            checked=self.verified,
            not_checked=self.not_verified,
            timings=self.stopwatch.read(),
        )


def checkpoint(
    container: str | ContainerRef,
    *,
    cluster: Cluster | None = None,
    options: CheckpointOptions | None = None,
    listener: Listener | None = None,
) -> ContainerCheckpoint:
    """Checkpoint the container NAMESPACE/POD/CONTAINER on its node, while its engines are quiesced.

    The engines resume afterwards, also after a failure. Raises a CriaError; CheckpointDamaged also where the node has
    written an archive that can be read from here and is not complete.
    """
    state = CheckpointState(
        ref=ContainerRef.parse(container) if isinstance(container, str) else container,
        cluster=cluster or Cluster(listener=listener),
        options=options or CheckpointOptions(),
        listener=listener or nobody,
    )
    return run(state)


def run(state: CheckpointState) -> ContainerCheckpoint:
    """Run all steps. Raises a CriaError; then the engines were resumed."""
    run_steps(
        "checkpoint", CHECKPOINT_STEPS, state, listener=state.listener, stopwatch=state.stopwatch
    )
    return ContainerCheckpoint(manifest=state.manifest, manifest_path=state.manifest_path)


def find_container(state: CheckpointState) -> None:
    state.container = find_running(state.cluster.get_pod(state.ref), state.ref.container)


def quiesce(state: CheckpointState) -> int | None:
    state.session = quiesce_session(
        state.cluster, state.container, state.options.quiesce, state.listener
    )
    return state.session.pause()


def resume(state: CheckpointState) -> None:
    if state.has("session"):
        state.session.resume()


def request_checkpoint(state: CheckpointState) -> None:
    state.raise_if_cancelled()
    try:
        seconds = state.options.timeout_seconds
        state.archive = state.cluster.checkpoint(state.container, seconds=seconds)
    except BaseException as error:
        # A cancelled request may leave the container frozen, and then no lease resumes its engine. Where the node
        # has answered, the container may be frozen for somebody else's checkpoint.
        answered = isinstance(error, CriaError) and not isinstance(error, CheckpointTimedOut)
        if not answered and thaw(state.container):
            message = f"{state.container} was left frozen; it runs again"
            state.listener(Warned(message=message))
        raise


def verify_archive(state: CheckpointState) -> int | None:
    """Read the archive where it can be seen from here: on the node, or where its directory is mounted."""
    path = local_path(state.archive, state.options.archives)
    try:
        archive = reader.read_archive(path)
    except CriaError as error:
        if not isinstance(error.__cause__, FileNotFoundError | PermissionError):
            raise
        why = error.__cause__.strerror
        state.not_verified = f"it is on node {state.container.node}: {path}: {why}"
        return None
    _check_container(archive.origin.container_id, state.container, path)
    state.verified = VerifiedArchive(
        path=str(path),
        bytes=archive.sizes.archive,
        pages_bytes=archive.sizes.pages,
        runtime=archive.origin.runtime,
        oci_runtime=archive.origin.oci_runtime,
        checkpointed=archive.origin.checkpointed,
    )
    return archive.sizes.archive


def local_path(archive: str, directory: Path | None) -> Path:
    """Return where an archive of the node is seen from here.

    Raises CheckpointDamaged for a path that is not absolute or leads elsewhere: no kubelet names one.
    """
    path = PurePosixPath(archive)
    if not path.is_absolute() or ".." in path.parts or "\0" in archive:
        raise CheckpointDamaged(
            "the node names an archive by a path that could lead anywhere",
            details=repr(archive[:200]),
            remedy="see whether a kubelet answers at this address",
        )
    return directory / path.name if directory else Path(path)


def write_manifest(state: CheckpointState) -> None:
    directory = state.options.manifests
    if directory is None and state.verified is not None:
        directory = Path(state.verified.path).parent
    if directory is None:
        message = f"the archive of {state.container} was not verified: {state.not_verified}"
        remedy = "run cria on the node; to keep a manifest all the same: --manifests DIR"
        state.listener(Warned(message=message, remedy=remedy))
        return
    state.manifest_path = str(manifests.write(state.manifest, directory))


def _check_container(container_id: str, container: RunningContainer, path: Path) -> None:
    if container_id and container.container_id and container_id != container.container_id:
        raise CheckpointDamaged(
            f"{path} is the archive of another container",
            details=f"of {container_id}; {container} is {container.container_id}",
            remedy=f"checkpoint it again: cria kubernetes checkpoint {container}",
        )


CHECKPOINT_STEPS: tuple[Step[CheckpointState], ...] = (
    Step("find-container", "find container", find_container),
    Step("quiesce-engine", "quiesce engine", quiesce, resume),
    Step(REQUEST_CHECKPOINT, "ask the kubelet for a checkpoint", request_checkpoint),
    Step("resume-engine", "resume engine", resume),
    Step("check-archive", "verify archive", verify_archive),
    Step("write-record", "write manifest", write_manifest),
)
