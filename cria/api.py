"""The Python API: each operation as a function, and a checkpoint that has them as methods.

cria.dump takes the fields of DumpRequest as its arguments, cria.restore those of RestoreRequest and
cria.restore_replicas those of ReplicasRequest: cria.requests has their types, defaults and meanings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import wraps
from inspect import signature
from pathlib import Path
from typing import IO, ParamSpec, TypedDict, TypeVar, Unpack, overload

from cria.checkpoint import handle
from cria.engine.handle import Engine
from cria.events import Listener
from cria.memory.shared.directory import SharedMemory
from cria.model.socket import Policy
from cria.network.plan import PortPlan
from cria.operations import pack as packing
from cria.operations import replicas as cloning
from cria.operations import share as sharing
from cria.operations.dump import steps as dumping
from cria.operations.restore import steps as restoring
from cria.operations.restore.prepare import plan_for
from cria.requests import (
    DumpRequest,
    Hook,
    Isolate,
    Ports,
    ReplicasRequest,
    RestoreRequest,
    StrPath,
)

Arguments = ParamSpec("Arguments")
Request = TypeVar("Request")
Result = TypeVar("Result")


def _takes(
    request: Callable[Arguments, Request],
) -> Callable[[Callable[[Request], Result]], Callable[Arguments, Result]]:
    """Give a function of a request the fields of that request as its arguments."""

    def decorate(run: Callable[[Request], Result]) -> Callable[Arguments, Result]:
        @wraps(run)
        def call(*args: Arguments.args, **options: Arguments.kwargs) -> Result:
            return run(request(*args, **options))

        call.__signature__ = signature(request)  # type: ignore[attr-defined]  # for help()
        return call

    return decorate


class RestoreOptions(TypedDict, total=False):
    """The options of Checkpoint.restore: the fields of ReplicasRequest that are not its own arguments."""

    wait_seconds: float
    isolate: Isolate
    outside: Policy
    clients: Policy
    canary: bool
    lazy: bool
    gpus: dict[str, str] | None
    gpu_seconds: float
    share_memory: bool
    share_in: StrPath | None
    hooks: Iterable[Hook]
    hook_seconds: float
    listener: Listener | None


class Checkpoint(handle.Checkpoint):
    """A published checkpoint, and what can be done with it."""

    def plan_ports(
        self, ports: Ports = None, *, outside: Policy = "refuse", clients: Policy = "close"
    ) -> PortPlan:
        """Plan where every endpoint goes on this host now; nothing is changed.

        The arguments are those of cria.restore. Raises PortPlanRefused, PortUnknown or PortTaken.
        """
        return plan_for(self, RestoreRequest(self, ports=ports, outside=outside, clients=clients))

    @overload
    def restore(
        self, ports: Ports = None, *, replicas: None = None, **options: Unpack[RestoreOptions]
    ) -> Engine: ...

    @overload
    def restore(
        self,
        ports: Ports = None,
        *,
        replicas: int,
        all_or_none: bool = False,
        **options: Unpack[RestoreOptions],
    ) -> tuple[Engine, ...]: ...

    def restore(
        self,
        ports: Ports = None,
        *,
        replicas: int | None = None,
        all_or_none: bool = False,
        **options: Unpack[RestoreOptions],
    ) -> Engine | tuple[Engine, ...]:
        """Restore the engine, or `replicas` clones of it at once. Raises a CriaError.

        The options are the fields of RestoreRequest and ReplicasRequest.
        """
        if replicas is None:
            return restore(self, ports=ports, **options)
        return restore_replicas(
            self, ports=ports, replicas=replicas, all_or_none=all_or_none, **options
        )

    def share_memory(
        self, place: StrPath | None = None, *, listener: Listener | None = None
    ) -> SharedMemory:
        """Make ready what clones share, so that the first of them need not wait for it.

        It lies in `place`, or beside the checkpoint. Raises CannotShare, NoSpace or NotWritable.
        """
        return sharing.share_memory(self, Path(place) if place else None, listener=listener)

    def unshare_memory(self, place: StrPath | None = None) -> int:
        """Remove what share_memory made and return the bytes freed. Raises PathTaken if it is in use."""
        return sharing.unshare_memory(self, Path(place) if place else None)

    def pack(self, archive: StrPath | IO[bytes], *, listener: Listener | None = None) -> None:
        """Write the whole checkpoint into one compressed archive. See cria.pack."""
        packing.pack(self, archive, listener=listener)


@_takes(DumpRequest)
def dump(request: DumpRequest) -> Checkpoint:
    """Dump an engine into a new checkpoint. The engine ends, unless `leave_running`.

    The arguments are the fields of cria.requests.DumpRequest. Raises a CriaError; the engine then runs
    on and there is no checkpoint.
    """
    return _with_methods(dumping.dump(request))


@_takes(RestoreRequest)
def restore(request: RestoreRequest) -> Engine:
    """Restore a checkpoint and return the running engine once it is healthy.

    The arguments are the fields of cria.requests.RestoreRequest. Raises a CriaError; then nothing of
    the engine runs. The checkpoint is never changed.
    """
    return restoring.restore(request)


@_takes(ReplicasRequest)
def restore_replicas(request: ReplicasRequest) -> tuple[Engine, ...]:
    """Restore several clones at once, each in namespaces of its own, and return those that are healthy.

    The arguments are the fields of cria.requests.ReplicasRequest. Where a clone fails the others go on
    and a Warned event names it. Raises a CriaError where none is healthy, or with `all_or_none` where
    one fails: then all of them are taken down.
    """
    return cloning.restore_replicas(request)


def open_checkpoint(path: StrPath) -> Checkpoint:
    """Open the checkpoint at `path`, and check that no part is missing or cut short.

    Raises CheckpointMissing, CheckpointDamaged or CheckpointNewer.
    """
    return Checkpoint.open(path)


def pack(
    checkpoint: handle.Checkpoint | StrPath,
    archive: StrPath | IO[bytes],
    *,
    listener: Listener | None = None,
) -> None:
    """Write a whole checkpoint into one compressed archive: a new file, or an open one.

    Digests are compared on the way. Raises a CriaError; a new file then does not exist.
    """
    packing.pack(checkpoint, archive, listener=listener)


def unpack(
    archive: StrPath | IO[bytes], output: StrPath, *, listener: Listener | None = None
) -> Checkpoint:
    """Unpack an archive into the new directory `output` and return the checkpoint there.

    Nothing is written outside that directory, nothing that the manifest does not declare, and every
    part must match its digest. Raises a CriaError; `output` then does not exist.
    """
    return _with_methods(packing.unpack(archive, output, listener=listener))


def _with_methods(checkpoint: handle.Checkpoint) -> Checkpoint:
    return Checkpoint(checkpoint.path, checkpoint.manifest, checkpoint.timings)
