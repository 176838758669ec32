"""Every error cria raises: what happened, why, how to mend it, and the exit status it ends with."""

from __future__ import annotations

from typing import ClassVar


class CriaError(Exception):
    """An error with the four parts a user needs: what, why, fix, see.

    `message` names the object it is about; `details` are gathered facts, one per line; `remedy` is
    a command or a setting; `docs` a page of the documentation; `log` the path of a log file.
    """

    code: ClassVar[str] = "bug"
    exit_status: ClassVar[int] = 1
    default_remedy: ClassVar[str | None] = None
    default_docs: ClassVar[str | None] = None

    def __init__(
        self,
        message: str,
        *,
        details: str | None = None,
        remedy: str | None = None,
        docs: str | None = None,
        log: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.details = details
        self.remedy = remedy or self.default_remedy
        self.docs = docs or self.default_docs or f"docs/reference/errors.md#{self.code}"
        self.log = log

    def to_json(self) -> dict[str, str | None]:
        return {
            "code": self.code,
            "message": self.message,
            "details": self.details,
            "remedy": self.remedy,
            "docs": self.docs,
            "log": self.log,
        }


class UsageError(CriaError):
    """The words on the command line, or the arguments of a call, do not fit."""

    code = "usage"
    exit_status = 2
    default_remedy = "cria --help"


class PrivilegeMissing(CriaError):
    """cria lacks root or a capability that CRIU needs."""

    code = "privilege-missing"
    exit_status = 10
    default_remedy = "run the same command as root: sudo -E env PATH=$PATH cria ..."


class CriuMissing(CriaError):
    """No CRIU program was found."""

    code = "criu-missing"
    exit_status = 11
    default_remedy = "install CRIU 4.1 or newer, or name it: export CRIA_CRIU=/path/to/criu"


class CriuUnsuitable(CriaError):
    """The CRIU that was found cannot work on this host."""

    code = "criu-unsuitable"
    exit_status = 12
    default_remedy = "install CRIU 4.1 or newer, or name it: export CRIA_CRIU=/path/to/criu"


class PycriuMissing(CriaError):
    """CRIU's Python package is missing or does not load."""

    code = "pycriu-missing"
    exit_status = 13
    default_remedy = (
        "install the package that belongs to your CRIU (Debian: apt install python3-pycriu)"
    )


class NotWritable(CriaError):
    """A file or directory that cria has to write cannot be written."""

    code = "not-writable"
    exit_status = 14


class NoSpace(CriaError):
    """The disk or the memory has too little room."""

    code = "no-space"
    exit_status = 15
    default_remedy = "free space, or write to another file system with -o"


class HookUnsafe(CriaError):
    """Somebody else could change what a user's hook does."""

    code = "hook-unsafe"
    exit_status = 16
    default_docs = "hooks/README.md"


class HookFailed(CriaError):
    """A user's hook failed or took too long; the dump or restore was undone."""

    code = "hook-failed"
    exit_status = 17
    default_remedy = "mend the hook and try again, or leave it out"
    default_docs = "hooks/README.md"


class CudaUnsuitable(CriaError):
    """This host cannot take an engine's GPU memory, or cannot give it back."""

    code = "cuda-unsuitable"
    exit_status = 18
    default_remedy = (
        "from cria's checkout: pip install '.[cuda]'; the NVIDIA driver has to be 570 or newer"
    )
    default_docs = "docs/how-to/gpu.md"


class NodeUnsuitable(CriaError):
    """A node lacks what the action script needs there."""

    code = "node-unsuitable"
    exit_status = 19
    default_docs = "docs/how-to/kubernetes-node.md"


class NoSuchProcess(CriaError):
    """The process that was named does not exist."""

    code = "no-such-process"
    exit_status = 20
    default_remedy = "list the engines of this host: cria ps"


class NotAnEngine(CriaError):
    """The process that was named does not belong to a vLLM engine."""

    code = "not-an-engine"
    exit_status = 21
    default_remedy = "list the engines of this host: cria ps"


class AmbiguousTarget(CriaError):
    """No engine, or more than one, fits what was named."""

    code = "ambiguous-target"
    exit_status = 22
    default_remedy = "name one by its PID: cria ps"


class EngineBlocked(CriaError):
    """The engine holds something that CRIU cannot dump."""

    code = "engine-blocked"
    exit_status = 23
    default_docs = "docs/reference/blockers.md"


class EngineBusy(CriaError):
    """Another cria is at work on this engine."""

    code = "engine-busy"
    exit_status = 24
    default_remedy = "wait until the other dump is done"


class EngineFailed(CriaError):
    """The engine ended, or did not become healthy in time."""

    code = "engine-failed"
    exit_status = 25


class QuiesceFailed(CriaError):
    """The engine could not be quiesced; it was resumed."""

    code = "quiesce-failed"
    exit_status = 26
    default_remedy = "dump it as it is: --no-quiesce"


class GpuNotTaken(CriaError):
    """The engine's GPU memory could not be taken; every process has its GPU and runs on."""

    code = "gpu-not-taken"
    exit_status = 27
    default_docs = "docs/how-to/gpu.md"


class GpuLost(CriaError):
    """Processes of the engine lost their GPU and cannot be given it back."""

    code = "gpu-lost"
    exit_status = 28
    default_remedy = "end the engine, then restore or start it again: cria stop PID"
    default_docs = "docs/how-to/gpu.md"


class DumpFailed(CriaError):
    """CRIU could not dump the engine; it goes on running."""

    code = "dump-failed"
    exit_status = 30
    default_docs = "docs/how-to/when-criu-fails.md"


class CheckpointExists(CriaError):
    """The output path is taken."""

    code = "checkpoint-exists"
    exit_status = 31


class DumpIncomplete(CriaError):
    """CRIU said yes, but the images lack something that the engine holds."""

    code = "dump-incomplete"
    exit_status = 32


class CheckpointMissing(CriaError):
    """There is no checkpoint at that path."""

    code = "checkpoint-missing"
    exit_status = 40
    default_remedy = "name the directory that cria dump printed"


class CheckpointDamaged(CriaError):
    """The checkpoint is truncated or was changed."""

    code = "checkpoint-damaged"
    exit_status = 41
    default_remedy = "take a new checkpoint: cria dump PID -o DIR"


class CheckpointNewer(CriaError):
    """The checkpoint was written by a newer cria."""

    code = "checkpoint-newer"
    exit_status = 42
    default_remedy = "upgrade cria"


class CheckpointMismatch(CriaError):
    """The checkpoint does not fit this host."""

    code = "checkpoint-mismatch"
    exit_status = 43


class NotACheckpoint(CriaError):
    """The file is neither a checkpoint nor a container runtime's archive of one."""

    code = "not-a-checkpoint"
    exit_status = 44
    default_remedy = "name the archive that the kubelet or the container runtime wrote"


class CannotShare(CriaError):
    """Clones cannot share the memory of this checkpoint, or not in that place."""

    code = "cannot-share"
    exit_status = 45
    default_remedy = "restore without --share-memory"
    default_docs = "docs/how-to/shared-memory.md"


class RestoreFailed(CriaError):
    """CRIU could not restore the checkpoint; nothing of it is left running."""

    code = "restore-failed"
    exit_status = 50
    default_docs = "docs/how-to/when-criu-fails.md"


class PortTaken(CriaError):
    """A port that the restored engine needs belongs to somebody else."""

    code = "port-taken"
    exit_status = 51
    default_remedy = "choose another port: -p OLD=NEW, or --ports auto"
    default_docs = "docs/explanation/ports.md"


class PortUnknown(CriaError):
    """A port that should move is not in the checkpoint."""

    code = "port-unknown"
    exit_status = 52
    default_docs = "docs/explanation/ports.md"


class PortPlanRefused(CriaError):
    """What was asked of the ports cannot work."""

    code = "port-plan-refused"
    exit_status = 53
    default_docs = "docs/explanation/ports.md"


class PidTaken(CriaError):
    """A process ID that the restored engine needs belongs to another process."""

    code = "pid-taken"
    exit_status = 54


class PathTaken(CriaError):
    """A path that the restored engine needs is in use by another process."""

    code = "path-taken"
    exit_status = 55


class Unhealthy(CriaError):
    """The restored engine does not answer as it did."""

    code = "unhealthy"
    exit_status = 56


class CanaryMismatch(CriaError):
    """The restored engine does not generate what it generated before its dump; it was taken down."""

    code = "canary-mismatch"
    exit_status = 57
    default_remedy = "take a new checkpoint; to look at this one: cria restore --no-canary"


class GpuNotGiven(CriaError):
    """The restored engine did not get its GPUs; it was taken down."""

    code = "gpu-not-given"
    exit_status = 58
    default_docs = "docs/how-to/gpu.md"


class KubernetesMissing(CriaError):
    """The library that speaks to a cluster is not installed, or was given no credentials that it knows."""

    code = "kubernetes-missing"
    exit_status = 60
    default_remedy = "from cria's checkout: pip install '.[kubernetes]'"
    default_docs = "docs/how-to/kubernetes.md"


class ClusterUnreachable(CriaError):
    """The API server, or the kubelet of a node, does not answer or is not who it should be."""

    code = "cluster-unreachable"
    exit_status = 61
    default_docs = "docs/how-to/kubernetes.md"


class ClusterForbids(CriaError):
    """The cluster does not know who asks, or does not allow what is asked."""

    code = "cluster-forbids"
    exit_status = 62
    default_remedy = "grant the rights that are needed: kubectl apply -f hooks/kubernetes/rbac.yaml"
    default_docs = "docs/how-to/kubernetes.md"


class NoSuchPod(CriaError):
    """There is no such pod, or it has no such container."""

    code = "no-such-pod"
    exit_status = 63


class PodNotRunning(CriaError):
    """The container that should be checkpointed does not run."""

    code = "pod-not-running"
    exit_status = 64


class CheckpointApiMissing(CriaError):
    """The node cannot checkpoint containers: its kubelet or its runtime does not do it."""

    code = "checkpoint-api-missing"
    exit_status = 65
    default_docs = "docs/how-to/kubernetes.md"


class CheckpointTimedOut(CriaError):
    """The node had not checkpointed the container in time; its engine was told to go on."""

    code = "checkpoint-timed-out"
    exit_status = 66
    default_remedy = "give it longer: --timeout SECONDS"


class SomeNotCheckpointed(CriaError):
    """Of several containers some were not checkpointed; the report says which, and why."""

    code = "some-not-checkpointed"
    exit_status = 67


def all_kinds() -> list[type[CriaError]]:
    """Every kind of error, by exit status: the table in the documentation is made from it."""
    return sorted(CriaError.__subclasses__(), key=lambda kind: kind.exit_status)
