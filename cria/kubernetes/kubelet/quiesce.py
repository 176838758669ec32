"""Quiesce the engines of a container before its node checkpoints it, and resume them."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Literal

import msgspec

from cria.engine.control import client
from cria.engine.control.client import ControlFailed
from cria.errors import CriaError, PrivilegeMissing, QuiesceFailed
from cria.events import Listener, Warned, nobody
from cria.kubernetes.kubelet.cluster import Cluster
from cria.kubernetes.kubelet.local_container import find_root_process
from cria.kubernetes.kubelet.pods import RunningContainer
from cria.kubernetes.node import criu_engines, in_pod
from cria.model.manifest import Inflight
from cria.system.procfs import PROC

Quiescer = Literal["exec", "node", "hook", "none"]
RESUME_SECONDS = 20.0

# The modules that are sent to a container, each after those that it imports, and the program that loads them there:
# nothing of cria needs to be installed in the container.
_SOURCES = {
    client.__name__: client.__file__,
    criu_engines.__name__: criu_engines.__file__,
    in_pod.__name__: in_pod.__file__,
}
_LOADER = """
import base64, json, sys, types, zlib
for name, text in json.loads(zlib.decompress(base64.urlsafe_b64decode(sys.argv[1]))):
    module = sys.modules[name] = types.ModuleType(name)
    exec(compile(text, name, "exec"), module.__dict__)
module.main(sys.argv[2])
"""


class QuiesceOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How to quiesce the engines of a container.

    `by` is how they are asked: by exec in the container, through /proc of the `node`, by the action script that is
    its `hook`, or not at all. `python` is the container's Python, for exec. After `lease_seconds` an engine resumes
    by itself. The lease counts from the request to the node and is not renewed, because no command is run in a
    container while its node dumps it: its process could be caught by the dump, or fail it.
    """

    by: Quiescer = "exec"
    inflight: Inflight = "keep"
    seconds: float = 60.0
    lease_seconds: float = 60.0
    python: str = "python3"


class QuiescedEngine(msgspec.Struct, frozen=True, kw_only=True):
    """What one engine reports: how many workers and process groups reached the barrier, and the bytes they dropped."""

    workers: int
    groups: int
    dropped_bytes: int


class QuiesceRecord(msgspec.Struct, frozen=True, kw_only=True):
    """How the engines of a container were quiesced; `hook` is the action script of the node.

    `resumed` is False where they had resumed before cria told them to, as after the action script or at the end of
    the lease. It is None where cria did not tell them, or they did not answer.
    """

    by: Quiescer
    why_not: str | None = None
    inflight: Inflight | None = None
    engines: tuple[QuiescedEngine, ...] = ()
    lease_seconds: float | None = None
    resumed: bool | None = None


class Request(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A request to cria.kubernetes.node.in_pod; only `pause` has the other fields."""

    command: Literal["pause", "resume"]
    inflight: Inflight | None = None
    seconds: float | None = None
    lease: float | None = None


class Response(msgspec.Struct, frozen=True, kw_only=True):
    """What cria.kubernetes.node.in_pod answers; with `error` every engine was resumed."""

    error: str | None = None
    engines: tuple[QuiescedEngine, ...] = ()
    lease_seconds: float | None = None
    resumed: tuple[bool, ...] = ()


Channel = Callable[
    [Request, float], Response
]  # send a request, and wait so many seconds for the response


class ContainerQuiesceSession:
    """Pauses the engines of one container for a checkpoint, and resumes them. `record` is what was reached."""

    def __init__(
        self,
        container: RunningContainer,
        options: QuiesceOptions,
        channel: Channel | None,
        listener: Listener | None,
    ) -> None:
        self._container, self._options, self._channel = container, options, channel
        self._notify = listener or nobody
        self._paused = False
        why_not = "not wanted: --quiesce none" if options.by == "none" else None
        self.record = QuiesceRecord(by=options.by, why_not=why_not)

    def pause(self) -> int | None:
        """Quiesce all engines. Returns the bytes that they dropped; None where there is no engine.

        Raises QuiesceFailed; then every engine was resumed.
        """
        if self._channel is None:
            return None
        options = self._options
        request = Request(
            command="pause",
            inflight=options.inflight,
            seconds=options.seconds,
            lease=options.lease_seconds,
        )
        self._paused = True
        response = self._channel(request, options.seconds * 2)
        if response.error:
            raise QuiesceFailed(
                f"the engine in {self._container} could not be quiesced",
                details=response.error,
                remedy="see what the engine does; to checkpoint it as it is: --quiesce none",
            )
        if not response.engines:
            self._warn_of_no_agent()
            return None
        self.record = QuiesceRecord(
            by=options.by,
            inflight=options.inflight,
            engines=response.engines,
            lease_seconds=response.lease_seconds,
        )
        return sum(engine.dropped_bytes for engine in response.engines)

    def resume(self) -> None:
        """Resume the engines; a second call does nothing.

        Only warns where they do not answer: they resume by themselves when their lease ends.
        """
        if self._channel is None or not self._paused:
            return
        try:
            resumed = self._channel(Request(command="resume"), RESUME_SECONDS).resumed
        except CriaError as error:
            self._paused = False
            message = f"could not tell the engine in {self._container} to resume: {error}"
            remedy = "none is needed: it resumes by itself when its lease ends"
            self._notify(Warned(message=message, remedy=remedy))
            return
        self._paused = (
            False  # not before: where this is interrupted, the caller's next call asks again
        )
        self.record = msgspec.structs.replace(self.record, resumed=any(resumed))

    def _warn_of_no_agent(self) -> None:
        self._paused = False
        why_not = "no engine of this container has cria's agent"
        self.record = QuiesceRecord(by="none", why_not=why_not)
        message = f"{why_not}: {self._container} is checkpointed as it is, with its KV cache"
        self._notify(Warned(message=message, remedy="start it with: cria run -- vllm serve ..."))


def quiesce_session(
    cluster: Cluster,
    container: RunningContainer,
    options: QuiesceOptions,
    listener: Listener | None = None,
) -> ContainerQuiesceSession:
    """Return a session that reaches the engines as `options` say. Raises NoSuchProcess where `by` is node and wrong."""
    channel: Channel | None = None
    if options.by == "exec":
        channel = exec_channel(cluster, container, options.python)
    elif options.by == "node":
        channel = node_channel(container)
    return ContainerQuiesceSession(container, options, channel, listener)


def exec_channel(cluster: Cluster, container: RunningContainer, python: str) -> Channel:
    """Return a channel that runs cria.kubernetes.node.in_pod in the container."""

    def send(request: Request, seconds: float) -> Response:
        text = msgspec.json.encode(request).decode()
        command = (python, "-I", "-c", _LOADER, packed_sources(), text)
        output = cluster.exec(container, command, seconds=seconds + 10.0)
        try:
            return msgspec.json.decode(output, type=Response)
        except msgspec.DecodeError as error:
            raise QuiesceFailed(
                f"cria's program in {container} gave no answer",
                details=output[-500:] or str(error),
            ) from error

    return send


def node_channel(container: RunningContainer, proc: Path = PROC) -> Channel:
    """Return a channel through /proc of this host, the container's node. Raises NoSuchProcess where it is another."""
    root = find_root_process(container, proc)

    def send(request: Request, _seconds: float) -> Response:
        try:
            engines = in_pod.find_engines(root, criu_engines.descendants(root))
            answer = in_pod.handle(msgspec.to_builtins(request), engines)
        except PermissionError as error:
            raise PrivilegeMissing(
                f"the processes of {container} cannot be looked into", details=str(error)
            ) from error
        except (ControlFailed, OSError, ValueError) as error:
            return Response(error=str(error) or type(error).__name__)
        return msgspec.convert(answer, Response)

    return send


@cache
def packed_sources() -> str:
    """Return the modules for the container as an argument of a command, which is a part of the URL of an exec."""
    sources = [(name, Path(path).read_text()) for name, path in _SOURCES.items()]
    return base64.urlsafe_b64encode(zlib.compress(json.dumps(sources).encode(), 9)).decode()
