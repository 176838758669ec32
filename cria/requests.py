"""What a user asks of an operation: each option with its name, its type, its default and its help, once.

The command line makes its options from these fields (cria.cli.options), the Python API takes them as
arguments (cria.api), and the operation gets the whole request.
"""

# No `from __future__ import annotations`: the command line reads the annotations of these fields.
import os
from collections.abc import Callable, Iterable
from typing import Annotated, Literal

import msgspec

from cria.checkpoint.handle import Checkpoint
from cria.events import Listener
from cria.model.hooks import HookCall
from cria.model.manifest import Inflight, Weights
from cria.model.socket import Policy
from cria.network.plan import PortPlan
from cria.network.requests import Asked, PortRequests

StrPath = str | os.PathLike[str]
Hook = Callable[[HookCall], object] | StrPath
Isolate = Literal["auto", "always", "never", "net"]
Ports = PortPlan | PortRequests | Asked | None


def _help(text: str) -> msgspec.Meta:
    return msgspec.Meta(description=text)


class _DumpTarget(msgspec.Struct, frozen=True):
    target: Annotated[
        int | None, _help("Any PID of the engine; by default the only engine on this host.")
    ] = None
    output: Annotated[StrPath, _help("The new directory of the checkpoint.")] = "checkpoint"


class DumpRequest(_DumpTarget, frozen=True, kw_only=True):
    """What a dump is asked for. The engine ends afterwards, unless `leave_running`."""

    port: Annotated[int | None, _help("Find the engine by the port of its HTTP API.")] = None
    leave_running: Annotated[bool, _help("Keep the engine running after the dump.")] = False
    any_process: Annotated[
        bool, _help("Dump the process tree of PID although it is not a vLLM engine.")
    ] = False
    skip_in_flight: Annotated[
        bool, _help("Drop connections that the engine has not accepted yet.")
    ] = False
    compress: Annotated[bool, _help("Compress the checkpoint with zstd.")] = False
    direct_io: Annotated[
        bool, _help("Write the images with O_DIRECT, where CRIU and the disk can.")
    ] = False
    canary: Annotated[
        bool, _help("Record a short generation, which each restore compares with its own.")
    ] = True
    quiesce: Annotated[
        bool, _help("Quiesce the engine before the dump, which drops its KV cache.")
    ] = True
    inflight: Annotated[
        Inflight | None,
        _help("Keep running requests for later, drain them first, or abort them."),
    ] = "keep"
    quiesce_seconds: Annotated[float, _help("Seconds that quiescing the engine may take.")] = 60.0
    weights: Annotated[
        Weights,
        _help("With GPUs: keep the weights in the checkpoint, or drop and reload them."),
    ] = "keep"
    gpu_seconds: Annotated[
        float, _help("Seconds that a copy of GPU memory to the host or back may take.")
    ] = 300.0
    hooks: Annotated[
        Iterable[Hook],
        _help("Run this program, or the hook of an installed package, at each stage."),
    ] = ()
    hook_seconds: Annotated[
        float, _help("Seconds that a hook program may take at each stage."), msgspec.Meta(gt=0)
    ] = 30.0
    listener: Listener | None = None

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "hooks", tuple(self.hooks))  # read more than once

    @property
    def requests_in_flight(self) -> Inflight | None:
        """What becomes of running requests; None where the engine is not quiesced."""
        return self.inflight if self.quiesce else None


class _RestoreSource(msgspec.Struct, frozen=True):
    checkpoint: Annotated[Checkpoint | StrPath, _help("The checkpoint to restore.")]


class RestoreRequest(_RestoreSource, frozen=True, kw_only=True):
    """What a restore is asked for.

    `ports` is a PortPlan, or what one is made from: {8000: 8001}, "keep", "auto", "offset:1000".
    """

    ports: Annotated[Ports, _help("Which port becomes which.")] = None
    wait_seconds: Annotated[float, _help("Seconds to wait until the engine is healthy.")] = 120.0
    isolate: Annotated[
        Isolate,
        _help(
            "Give the engine its own pid, mount and ipc namespaces: auto, if a PID or path that it "
            "needs is taken; net, with a network namespace too."
        ),
    ] = "auto"
    outside: Annotated[
        Policy,
        _help("Refuse to restore, close or keep connections whose other end is outside."),
    ] = "refuse"
    clients: Annotated[
        Policy,
        _help("Refuse to restore, close or keep connections from clients of the HTTP API."),
    ] = "close"
    canary: Annotated[
        bool, _help("Compare what the engine generates with what it generated before its dump.")
    ] = True
    lazy: Annotated[bool, _help("Let the engine run while its memory is still being loaded.")] = (
        False
    )
    gpus: Annotated[dict[str, str] | None, _help("Restore onto another GPU, by UUID.")] = None
    gpu_seconds: Annotated[
        float, _help("Seconds that a copy of GPU memory from the host may take.")
    ] = 300.0
    share_memory: Annotated[
        bool, _help("Map memory from files that all clones share, instead of copying it.")
    ] = False
    share_in: Annotated[
        StrPath | None,
        _help("Share memory from files in this directory, not beside the checkpoint."),
    ] = None
    hooks: Annotated[
        Iterable[Hook],
        _help("Run this program, or the hook of an installed package, at each stage."),
    ] = ()
    hook_seconds: Annotated[
        float, _help("Seconds that a hook program may take at each stage."), msgspec.Meta(gt=0)
    ] = 30.0
    listener: Listener | None = None

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "hooks", tuple(self.hooks))  # read more than once

    @property
    def shares_memory(self) -> bool:
        return self.share_memory or self.share_in is not None


class ReplicasRequest(RestoreRequest, frozen=True, kw_only=True):
    """What a restore of several clones at once is asked for. `ports` may name a range for each port."""

    replicas: Annotated[int, _help("Restore this many clones at once."), msgspec.Meta(ge=1)]
    all_or_none: Annotated[bool, _help("If one clone fails, take all of them down again.")] = False
