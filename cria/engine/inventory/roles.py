"""What each process and socket of an engine is for: one small rule per role, each with its evidence."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import msgspec

from cria.engine.command_line import TITLE_PREFIX, option_value, starts_engine
from cria.engine.inventory.process_facts import GLOO_THREAD, STORE_THREADS, ProcessFacts
from cria.engine.inventory.queues import Queues, role_kind
from cria.model.inventory import UNKNOWN, Endpoint, Process, Role, SharedFile, Socket, UnixSocket
from cria.system.sockets import plain

HTTP_API = "HTTP API"
CONTROL = "cria control"
CONTROL_PATH = re.compile(r"/.*/cria-[0-9a-f]{16}\.sock")  # cria/agent names it so
RING = "MessageQueue ring"
DEFAULT_PORT = 8000
UVICORN_BACKLOG = 2048
# The end of a connection is named after the listener it belongs to.
CONNECTIONS = {HTTP_API: "HTTP connection", "Gloo listener": "Gloo pair", "TCPStore": "TCPStore"}
WILDCARDS = ("0.0.0.0", "::")
_COMMANDS = {
    "multiprocessing.resource_tracker": "resource tracker",
    "multiprocessing.forkserver": "fork server",
    "multiprocessing.spawn": "starting",
    "torch._inductor.compile_worker": "compile worker",
}
_SHARED = {
    "sem.": "semaphore",
    "pym-": "multiprocessing heap",
    "nccl-": "NCCL buffer",
    "torch_": "torch tensor",
}


class Context(msgspec.Struct, frozen=True, kw_only=True):
    """All that a rule may look at besides the socket itself."""

    facts: dict[int, ProcessFacts]
    queues: Queues
    listeners: dict[tuple[int, int], list[Socket]] = {}  # by network namespace and port


Rule = Callable[[Socket, Context], Role | None]


# Processes ------------------------------------------------------------------------------------


def process_roles(processes: Iterable[Process]) -> dict[int, Role]:
    """Return the role of each process; the first is the root."""
    root, *others = processes
    roles = {process.pid: process_role(process) for process in others}
    for process in others:
        roles[process.pid] = _below(roles[process.pid], roles.get(process.parent))
    served_below = any(role.name.startswith("API server") for role in roles.values())
    return {root.pid: root_role(root, served_below=served_below), **roles}


def _below(role: Role, parent: Role | None) -> Role:
    """Say of a worker whose it is: with one worker to an engine core its title has no rank."""
    if role.name != "Worker" or parent is None:
        return role
    return msgspec.structs.replace(role, evidence=(*role.evidence, f"below {parent.name}"))


def root_role(root: Process, *, served_below: bool) -> Role:
    if not starts_engine(root.command):
        return process_role(root)
    if served_below:
        return _certain("launcher", "serves by its command, and has API servers below it")
    return _certain("API server", "serves by its command, at the root of the tree")


def process_role(process: Process) -> Role:
    """Read the role from the title that vLLM gives its processes, or from the command."""
    title = process.command[0] if process.command else process.name
    if title.startswith(TITLE_PREFIX):
        name = title.removeprefix(TITLE_PREFIX).strip()
        server = name.removeprefix("APIServer_")
        return _certain(f"API server {server}" if server != name else name, f"title {title}")
    words = " ".join(process.command)
    for part, name in _COMMANDS.items():
        if part in words:
            return _certain(name, f"command names {part}")
    if process.name.startswith(("ray::", "raylet", "gcs_server")):
        return _certain("Ray", f"name {process.name}")
    return UNKNOWN


# TCP and UDP ----------------------------------------------------------------------------------


def inet_roles(sockets: Iterable[Socket], seen: Context) -> tuple[Socket, ...]:
    """Return the sockets with their roles: listeners first, since connections are named after them."""
    named = [s if s.peer else _named(s, LISTENER_RULES, seen) for s in sockets]
    listeners: dict[tuple[int, int], list[Socket]] = {}
    for each in named:
        if each.state == "LISTEN":
            listeners.setdefault((each.netns, each.local.port), []).append(each)
    known = msgspec.structs.replace(seen, listeners=listeners)
    return tuple(_named(s, CONNECTION_RULES, known) if s.peer else s for s in named)


def http_api(socket: Socket, seen: Context) -> Role | None:
    """The listener of an API server, on the port its command names or with uvicorn's backlog."""
    owners = [f for f in _owners(socket, seen) if _is_server(f)]
    if socket.protocol != "tcp" or not owners:
        return None
    facts = owners[0]
    evidence = [f"held by {facts.role.name} {facts.process.pid}"]
    by_port = socket.local.port == commanded_port(seen)
    by_backlog = socket.backlog == UVICORN_BACKLOG
    if by_port:
        evidence.append(f"its command names port {socket.local.port}")
    if by_backlog:
        evidence.append(f"backlog {UVICORN_BACKLOG} is uvicorn's")
    by_loop = any(f.watching(fd, "event loop") for f, fd in _holders(socket, seen))
    if by_loop and "uvloop" in facts.libraries:
        evidence.append("uvloop's epoll watches it")
    if by_port or (by_backlog and by_loop):
        return _certain(HTTP_API, *evidence)
    return _likely(HTTP_API, *evidence) if by_backlog or by_loop else None


def gloo_listener(socket: Socket, seen: Context) -> Role | None:
    """Each Gloo process group has a listener, a pipe and an epoll of both, made in one go."""
    if socket.local.address in WILDCARDS:
        return None
    for facts, fd in _holders(socket, seen):
        if not facts.has_thread(GLOO_THREAD):
            continue
        evidence = [
            f"bound to {socket.local.address}",
            f"{facts.threads.get(GLOO_THREAD, 0)} threads {GLOO_THREAD} in {facts.process.pid}",
        ]
        epoll = facts.watching(fd, "Gloo")
        if epoll:
            wakers = [f"fd {other}" for other in epoll.watches if other != fd][:1]
            evidence.insert(0, f"epoll fd {epoll.fd} watches it and the pipe {''.join(wakers)}")
            return _certain("Gloo listener", *evidence)
        if not facts.watched(fd):
            continue
        return _likely("Gloo listener", *evidence)
    return None


def tcp_store(socket: Socket, seen: Context) -> Role | None:
    """The store's thread has a name of its own, and its loop is libuv's (or a plain poll)."""
    for facts, fd in _holders(socket, seen):
        threads = [name for name in facts.threads if name.startswith(STORE_THREADS)]
        if not threads or facts.watching(fd, "ZMQ") or facts.watching(fd, "Gloo"):
            continue
        evidence = f"thread {threads[0]} in {facts.process.pid}"
        if facts.watched(fd):
            return _certain("TCPStore", evidence, "an epoll outside Gloo and ZMQ watches it")
        return _likely("TCPStore", evidence)
    return None


def zmq_queue(socket: Socket, seen: Context) -> Role | None:
    return seen.queues.role(socket.inode)


def nccl_listener(socket: Socket, seen: Context) -> Role | None:
    for facts, fd in _holders(socket, seen):
        talks = "libnccl" in facts.libraries and facts.has_thread("pt_nccl")
        if talks and not facts.watched(fd):
            return _likely("NCCL", f"libnccl in {facts.process.pid}", "no epoll watches it")
    return None


def ray(socket: Socket, seen: Context) -> Role | None:
    for facts in _owners(socket, seen):
        if facts.role.name == "Ray":
            return _certain("Ray", f"held by {facts.process.name} {facts.process.pid}")
    return None


def of_its_listener(socket: Socket, seen: Context) -> Role | None:
    """A connection is named after the listener of the engine at either of its ends."""
    # The far end counts only where the engine holds it: another host may have the same port.
    for end in (socket.local, socket.peer if socket.peer_holders else None):
        listener = _listener_at(end, socket.netns, seen)
        if listener is None or listener.role.name not in CONNECTIONS:
            continue
        name = CONNECTIONS[listener.role.name]
        return Role(
            name=name,
            confidence=listener.role.confidence,
            evidence=(f"one end is the {listener.role.name} at {listener.local}",),
        )
    return None


def gloo_pair(socket: Socket, seen: Context) -> Role | None:
    for facts, fd in _holders(socket, seen):
        epoll = facts.watching(fd, "Gloo")
        if epoll:
            return _likely("Gloo pair", f"epoll fd {epoll.fd} of a Gloo loop watches it")
    return None


LISTENER_RULES: tuple[Rule, ...] = (
    ray,
    gloo_listener,
    zmq_queue,
    http_api,
    tcp_store,
    nccl_listener,
)
CONNECTION_RULES: tuple[Rule, ...] = (ray, zmq_queue, of_its_listener, gloo_pair)


# Unix sockets and shared memory ---------------------------------------------------------------


def unix_role(socket: UnixSocket, seen: Context) -> Role:
    """Return what a unix socket is for."""
    path = socket.path or ""
    if CONTROL_PATH.fullmatch(path):
        return _certain(CONTROL, f"path {path}")
    queue = seen.queues.role(socket.inode)
    if queue:
        return queue
    if path.startswith("@tmp/nccl-socket"):
        return _certain("NCCL proxy", f"name {path}")
    if path.startswith("@cuda-uvmfd"):
        return _certain("CUDA driver", f"name {path}")
    if path and path == _option(seen, "--uds"):
        return _certain(HTTP_API, f"the command names --uds {path}")
    return _signal_pair(socket, seen) or UNKNOWN


def _signal_pair(socket: UnixSocket, seen: Context) -> Role | None:
    """Python's wake-up pair: both ends unnamed in one process, one of them in its event loop."""
    own = {holder.pid for holder in socket.holders}
    if socket.path or not own or own != {holder.pid for holder in socket.peer_holders}:
        return None
    facts = seen.facts.get(next(iter(own)))
    ends = (*socket.holders, *socket.peer_holders)
    if facts and any(facts.watching(end.fd, "event loop") for end in ends):
        return _certain("signal pair", "both ends in one process", "its event loop watches one")
    return None


def shared_roles(
    files: Iterable[SharedFile], facts: Mapping[int, ProcessFacts]
) -> tuple[SharedFile, ...]:
    """Return the files of /dev/shm with their roles."""
    found = tuple(files)
    rings = Counter(file.pids for file in found if _base(file).startswith("psm_"))
    return tuple(
        msgspec.structs.replace(file, role=shared_role(file, facts, rings[file.pids]))
        for file in found
    )


def shared_role(file: SharedFile, facts: Mapping[int, ProcessFacts], rings: int) -> Role:
    """Name a file by how its maker calls such files; `rings` of them are mapped by its processes."""
    name = _base(file)
    if "cpushm" in name:
        return _certain("CPU tensor-parallel buffer", f"name {name}")
    if name.startswith("psm_"):
        # With one worker the queues to it and from it have the same readers: they look alike.
        role = f"{RING}, {_ring(file, facts)}" if rings == 1 else RING
        return _likely(role, f"name {name}", f"{len(file.pids)} processes map it")
    for prefix, role in _SHARED.items():
        if name.startswith(prefix):
            return _likely(role, f"name {name}")
    return UNKNOWN


def _ring(file: SharedFile, facts: Mapping[int, ProcessFacts]) -> str:
    workers = [pid for pid in file.pids if pid in facts and role_kind(facts[pid].role) == "Worker"]
    if len(workers) == len(file.pids):
        return "group broadcast"
    return "worker response" if len(workers) == 1 else "worker broadcast"


def _base(file: SharedFile) -> str:
    return file.name.rpartition("/")[2]


# What the rules share -------------------------------------------------------------------------


def commanded_port(seen: Context) -> int | None:
    """Return the port in the root's command; vLLM's own 8000 where it names none."""
    text = _option(seen, "--port")
    if text is None:
        return DEFAULT_PORT if any(_is_server(f) for f in seen.facts.values()) else None
    return int(text) if text.isdecimal() else None


def _option(seen: Context, name: str) -> str | None:
    found = (option_value(f.process.command, name) for f in seen.facts.values())
    return next((value for value in found if value is not None), None)


def _named(socket: Socket, rules: Iterable[Rule], seen: Context) -> Socket:
    """Give the socket its role: the first that is certain, else the first that is likely."""
    found = [role for rule in rules if (role := rule(socket, seen)) is not None]
    found.sort(key=lambda role: role.confidence != "certain")
    return msgspec.structs.replace(socket, role=found[0] if found else UNKNOWN)


def _listener_at(end: Endpoint | None, netns: int, seen: Context) -> Socket | None:
    if end is None:
        return None
    for each in seen.listeners.get((netns, end.port), ()):
        if each.local.address in WILDCARDS or plain(each.local.address) == plain(end.address):
            return each
    return None


def _owners(socket: Socket, seen: Context) -> list[ProcessFacts]:
    return [facts for facts, _ in _holders(socket, seen)]


def _holders(socket: Socket | UnixSocket, seen: Context) -> list[tuple[ProcessFacts, int]]:
    return [(seen.facts[h.pid], h.fd) for h in socket.holders if h.pid in seen.facts]


def _is_server(facts: ProcessFacts) -> bool:
    return facts.role.name.startswith(("API server", "launcher"))


def _certain(name: str, *evidence: str) -> Role:
    return _role(name, "certain", evidence)


def _likely(name: str, *evidence: str) -> Role:
    return _role(name, "likely", evidence)


def _role(name: str, confidence: Literal["certain", "likely"], evidence: tuple[str, ...]) -> Role:
    return Role(name=name, confidence=confidence, evidence=evidence)
