"""Bring the engines of a container to a still point from outside, and let them go on."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Literal

import msgspec

from cria.errors import CriaError, NoSuchProcess, PrivilegeMissing, QuiesceFailed
from cria.events import Listener, Warned, nobody
from cria.kubernetes.kubelet.cluster import Cluster
from cria.kubernetes.kubelet.pods import RunningContainer
from cria.model.manifest import Inflight

Quiescer = Literal["exec", "node", "hook", "none"]
RESUME_SECONDS = 20.0
_SENT = ("cria.kubernetes.node.criu_action", "cria.kubernetes.node.in_pod")
_LOADER = """
import base64, json, sys, types, zlib
for name, text in json.loads(zlib.decompress(base64.urlsafe_b64decode(sys.argv[1]))):
    module = sys.modules[name] = types.ModuleType(name)
    exec(compile(text, name, "exec"), module.__dict__)
module.main(sys.argv[2])
"""


class QuiescedEngine(msgspec.Struct, frozen=True, kw_only=True):
    """One engine at its still point: the process groups that met, in so many workers, and what was dropped."""

    workers: int
    groups: int
    dropped_bytes: int


class QuiesceRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Who brought a container's engines to a still point; `hook` is the action script of the node.

    `resumed` is False where they had gone on before they were told to: the node's hook does that, and a
    lease that ends. It is None where cria did not ask, and where they did not answer.
    """

    by: Quiescer
    why_not: str | None = None
    inflight: Inflight | None = None
    engines: tuple[QuiescedEngine, ...] = ()
    lease_seconds: float | None = None
    resumed: bool | None = None


class QuiesceOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a container is to be brought to a still point; `python` is the one to run in the container.

    The lease counts from the moment when the node is asked: it must begin its dump within.
    """

    by: Quiescer = "exec"
    inflight: Inflight = "keep"
    seconds: float = 60.0
    lease_seconds: float = 60.0
    python: str = "python3"


class _Answer(msgspec.Struct, frozen=True, kw_only=True):
    """Of cria.kubernetes.node.in_pod."""

    error: str | None = None
    engines: tuple[QuiescedEngine, ...] = ()
    lease_seconds: float | None = None
    resumed: tuple[bool, ...] = ()


Channel = Callable[[dict[str, Any], float], _Answer]


class ContainerQuiesceSession:
    """One container on its way to a still point and back; `still` is what was reached."""

    def __init__(
        self,
        found: RunningContainer,
        wish: QuiesceOptions,
        ask: Channel | None,
        listener: Listener | None,
    ) -> None:
        self._found, self._wish, self._ask = found, wish, ask
        self._tell = listener or nobody
        self._paused = False
        why = "not wanted: --quiesce none" if wish.by == "none" else None
        self.still = QuiesceRecord(by=wish.by, why_not=why)

    def pause(self) -> int | None:
        """Returns the bytes that were dropped. Raises QuiesceFailed; the engines were then told to go on."""
        if self._ask is None:
            return None
        words = {"inflight": self._wish.inflight, "seconds": self._wish.seconds}
        lease = {"lease": self._wish.lease_seconds}
        self._paused = True
        answer = self._ask({"command": "pause", **words, **lease}, self._wish.seconds * 2)
        if answer.error:
            raise QuiesceFailed(
                f"the engine in {self._found} did not come to a still point",
                details=answer.error,
                remedy="see what it is at; to checkpoint it as it stands: --quiesce none",
            )
        if not answer.engines:
            self._nobody_there()
            return None
        self.still = QuiesceRecord(
            by=self._wish.by,
            inflight=self._wish.inflight,
            engines=answer.engines,
            lease_seconds=answer.lease_seconds,
        )
        return sum(each.dropped_bytes for each in answer.engines)

    def resume(self) -> None:
        """Let them go on. Twice is once; only warns when nobody hears: they go on when their lease ends."""
        if self._ask is None or not self._paused:
            return
        try:
            told = self._ask({"command": "resume"}, RESUME_SECONDS).resumed
        except CriaError as error:
            self._paused = False
            words = f"{self._found} was not told to go on: {error}"
            self._tell(Warned(message=words, remedy="none: it goes on when its lease ends"))
            return
        self._paused = False  # not before: whoever interrupts this asks again
        self.still = msgspec.structs.replace(self.still, resumed=any(told))

    def _nobody_there(self) -> None:
        self._paused = False
        why = "cria is inside no engine of this container"
        self.still = QuiesceRecord(by="none", why_not=why)
        words = f"{why}: {self._found} is checkpointed as it stands, with its KV cache"
        self._tell(Warned(message=words, remedy="start it with: cria run -- vllm serve ..."))


def quiesce_session(
    cluster: Cluster,
    found: RunningContainer,
    wish: QuiesceOptions,
    listener: Listener | None = None,
) -> ContainerQuiesceSession:
    """The way to a still point that `wish` names. Raises NoSuchProcess where it is not on this node."""
    if wish.by == "exec":
        return ContainerQuiesceSession(
            found, wish, exec_channel(cluster, found, wish.python), listener
        )
    if wish.by == "node":
        return ContainerQuiesceSession(found, wish, node_channel(found), listener)
    return ContainerQuiesceSession(found, wish, None, listener)


def exec_channel(cluster: Cluster, found: RunningContainer, python: str) -> Channel:
    """Run what asks the engines in their container: nothing of cria needs to be installed there."""

    def ask(request: dict[str, Any], seconds: float) -> _Answer:
        command = (python, "-I", "-c", _LOADER, packed_sources(), json.dumps(request))
        return _read(cluster.run_in(found, command, seconds=seconds + 10.0), found)

    return ask


@cache
def packed_sources() -> str:
    """The modules that go to the container, small enough for the words of a command."""
    texts = [(name, _source(name)) for name in _SENT]
    return base64.urlsafe_b64encode(zlib.compress(json.dumps(texts).encode(), 9)).decode()


def _source(name: str) -> str:
    return (Path(__file__).parents[1] / "node" / f"{name.rpartition('.')[2]}.py").read_text()


def node_channel(found: RunningContainer, proc: Path = Path("/proc")) -> Channel:
    """Ask the engines through /proc, where this is their node. Raises NoSuchProcess, PrivilegeMissing."""
    from cria.kubernetes.node import in_pod
    from cria.kubernetes.node.criu_action import Failed, find_engines

    root = find_root_process(found, proc)

    def ask(request: dict[str, Any], _seconds: float) -> _Answer:
        try:
            return msgspec.convert(in_pod.carry_out(request, find_engines(root)), _Answer)
        except PermissionError as error:
            raise PrivilegeMissing(
                f"the processes of {found} cannot be looked into", details=str(error)
            ) from error
        except (Failed, OSError, ValueError) as error:
            return _Answer(error=str(error) or type(error).__name__)

    return ask


def find_root_process(found: RunningContainer, proc: Path = Path("/proc")) -> int:
    """The first process of a container, known by the cgroup that bears its ID. Raises NoSuchProcess."""
    inside = {}
    for path in proc.glob("[0-9]*"):
        try:
            if found.container_id and found.container_id in (path / "cgroup").read_text():
                inside[int(path.name)] = _parent(path)
        except OSError:  # it has ended
            continue
    roots = [pid for pid, parent in inside.items() if parent not in inside]
    if not roots:
        raise NoSuchProcess(
            f"no process here belongs to {found}",
            details=f"it is on node {found.node}",
            remedy="run this on that node, in its PID namespace (hostPID), or: --quiesce exec",
        )
    return min(roots)


def thaw(found: RunningContainer) -> bool:
    """Let a container run again that was left frozen, where this is its node; whether that was needed.

    By its runtime where that can be asked: else it takes the container for paused for ever after, runs nothing
    in it, and freezes it for no later checkpoint.
    """
    from cria.kubernetes.node.criu_action import freezer, is_frozen, write

    try:
        file, _, running = freezer(find_root_process(found))
        if file is None or not is_frozen(file):
            return False
        if not _resumed_by_its_runtime(found):
            write(file, running)
    except (NoSuchProcess, OSError):  # it is elsewhere, has ended, or is not for us to let go
        return False
    return True


def _resumed_by_its_runtime(found: RunningContainer) -> bool:
    ctr = shutil.which("ctr")
    if ctr is None:
        return False
    command = [ctr, "--namespace", "k8s.io", "task", "resume", found.container_id]
    try:
        done = subprocess.run(command, capture_output=True, timeout=RESUME_SECONDS, check=False)
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0


def _parent(path: Path) -> int:
    return int((path / "stat").read_text().rpartition(")")[2].split()[1])


def _read(text: str, found: RunningContainer) -> _Answer:
    try:
        return msgspec.json.decode(text, type=_Answer)
    except msgspec.DecodeError as error:
        raise QuiesceFailed(
            f"what asks the engine in {found} did not answer", details=text[-500:] or str(error)
        ) from error
