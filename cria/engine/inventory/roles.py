"""Name what each process, socket and shared file of an engine is for: one small rule per role, each with its evidence.

A rule takes a socket and its context, and returns the role, "certain" or "likely", or None where the rule does not
match. Where a sign is missing a rule says less, never something else.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import msgspec

from cria.engine.command_line import TITLE_PREFIX, option_value, starts_engine
from cria.engine.inventory.process_facts import GLOO_THREAD, STORE_THREADS, ProcessFacts
from cria.engine.inventory.queues import Queues, role_kind
from cria.model.inventory import UNKNOWN, Process, Role, SharedFile, Socket, UnixSocket
from cria.model.socket import Endpoint
from cria.system.sockets import plain

HTTP_API = "HTTP API"
CONTROL = "cria control"
CONTROL_PATH = re.compile(r"/.*/cria-[0-9a-f]{16}\.sock")  # as cria_agent.control_socket makes it
RING = "MessageQueue ring"
DEFAULT_PORT = 8000
UVICORN_BACKLOG = 2048
# A connection has its role from the listener at one of its ends.
CONNECTIONS = {HTTP_API: "HTTP connection", "Gloo listener": "Gloo pair", "TCPStore": "TCPStore"}
WILDCARDS = ("0.0.0.0", "::")
_COMMAND_ROLES = {
    "multiprocessing.resource_tracker": "resource tracker",
    "multiprocessing.forkserver": "fork server",
    "multiprocessing.spawn": "starting",
    "torch._inductor.compile_worker": "compile worker",
}
_SHARED_FILE_ROLES = {
    "sem.": "semaphore",
    "pym-": "multiprocessing heap",
    "nccl-": "NCCL buffer",
    "torch_": "torch tensor",
}


class Context(msgspec.Struct, frozen=True, kw_only=True):
    """What a rule may use besides the socket itself."""

    facts: dict[int, ProcessFacts]
    queues: Queues
    listeners: dict[tuple[int, int], list[Socket]] = {}  # by network namespace and port


Rule = Callable[[Socket, Context], Role | None]


# Processes ------------------------------------------------------------------------------------


def process_roles(processes: Iterable[Process]) -> dict[int, Role]:
    """Return the role of each process, by PID; the first process is the root."""
    root, *others = processes
    roles = {process.pid: process_role(process) for process in others}
    for process in others:
        roles[process.pid] = _with_parent(roles[process.pid], roles.get(process.parent))
    has_servers = any(role.name.startswith("API server") for role in roles.values())
    return {root.pid: root_role(root, has_servers=has_servers), **roles}


def _with_parent(role: Role, parent: Role | None) -> Role:
    """Add the parent of a worker to its evidence: with one worker to an engine core its title has no rank."""
    if role.name != "Worker" or parent is None:
        return role
    return msgspec.structs.replace(role, evidence=(*role.evidence, f"below {parent.name}"))


def root_role(root: Process, *, has_servers: bool) -> Role:
    """Return the role of the root, which launches API servers or is the only one."""
    if not starts_engine(root.command):
        return process_role(root)
    if has_servers:
        return _certain("launcher", "its command starts vLLM, and API servers are below it")
    return _certain("API server", "its command starts vLLM, at the root of the tree")


def process_role(process: Process) -> Role:
    """Return the role that the title of a process says, or its command."""
    title = process.command[0] if process.command else process.name
    if title.startswith(TITLE_PREFIX):
        name = title.removeprefix(TITLE_PREFIX).strip()
        server = name.removeprefix("APIServer_")
        return _certain(f"API server {server}" if server != name else name, f"title {title}")
    command = " ".join(process.command)
    for part, name in _COMMAND_ROLES.items():
        if part in command:
            return _certain(name, f"command names {part}")
    if process.name.startswith(("ray::", "raylet", "gcs_server")):
        return _certain("Ray", f"name {process.name}")
    return UNKNOWN


# TCP and UDP ----------------------------------------------------------------------------------


def inet_roles(sockets: Iterable[Socket], context: Context) -> tuple[Socket, ...]:
    """Return the sockets with their roles; connections have theirs from the listeners."""
    with_listeners = [s if s.peer else _with_role(s, LISTENER_RULES, context) for s in sockets]
    listeners: dict[tuple[int, int], list[Socket]] = {}
    for socket in with_listeners:
        if socket.state == "LISTEN":
            listeners.setdefault((socket.netns, socket.local.port), []).append(socket)
    context = msgspec.structs.replace(context, listeners=listeners)
    return tuple(_with_role(s, CONNECTION_RULES, context) if s.peer else s for s in with_listeners)


def http_api(socket: Socket, context: Context) -> Role | None:
    """Match a listener of an API server on the port that its command names, or with uvicorn's backlog in its event loop."""
    servers = [facts for facts, _ in _holders(socket, context) if _is_server(facts)]
    if socket.protocol != "tcp" or not servers:
        return None
    facts = servers[0]
    evidence = [f"held by {facts.role.name} {facts.process.pid}"]
    by_port = socket.local.port == commanded_port(context)
    by_backlog = socket.backlog == UVICORN_BACKLOG
    if by_port:
        evidence.append(f"its command names port {socket.local.port}")
    if by_backlog:
        evidence.append(f"backlog {UVICORN_BACKLOG} is uvicorn's")
    by_loop = any(f.epoll_on(fd, "event loop") for f, fd in _holders(socket, context))
    if by_loop and "uvloop" in facts.libraries:
        evidence.append("uvloop's epoll watches it")
    if by_port or (by_backlog and by_loop):
        return _certain(HTTP_API, *evidence)
    return _likely(HTTP_API, *evidence) if by_backlog or by_loop else None


def gloo_listener(socket: Socket, context: Context) -> Role | None:
    """Match a listener that one epoll watches together with a pipe: Gloo makes the three for each process group."""
    if socket.local.address in WILDCARDS:
        return None
    for facts, fd in _holders(socket, context):
        if not facts.has_thread(GLOO_THREAD):
            continue
        evidence = [
            f"bound to {socket.local.address}",
            f"{facts.threads.get(GLOO_THREAD, 0)} threads {GLOO_THREAD} in {facts.process.pid}",
        ]
        epoll = facts.epoll_on(fd, "Gloo")
        if epoll:
            wakers = [f"fd {other}" for other in epoll.watches if other != fd][:1]
            evidence.insert(0, f"epoll fd {epoll.fd} watches it and the pipe {''.join(wakers)}")
            return _certain("Gloo listener", *evidence)
        if not facts.is_watched(fd):
            continue
        return _likely("Gloo listener", *evidence)
    return None


def tcp_store(socket: Socket, context: Context) -> Role | None:
    """Match a listener of a process with the store's thread, in a loop that is neither Gloo's nor ZMQ's."""
    for facts, fd in _holders(socket, context):
        threads = [name for name in facts.threads if name.startswith(STORE_THREADS)]
        if not threads or facts.epoll_on(fd, "ZMQ") or facts.epoll_on(fd, "Gloo"):
            continue
        evidence = f"thread {threads[0]} in {facts.process.pid}"
        if facts.is_watched(fd):
            return _certain("TCPStore", evidence, "an epoll outside Gloo and ZMQ watches it")
        return _likely("TCPStore", evidence)
    return None


def zmq_queue(socket: Socket, context: Context) -> Role | None:
    """Match a socket that libzmq's epoll watches, and its other end."""
    return context.queues.role(socket.inode)


def nccl_listener(socket: Socket, context: Context) -> Role | None:
    """Match a listener that no epoll watches, in a process that uses NCCL."""
    for facts, fd in _holders(socket, context):
        uses_nccl = "libnccl" in facts.libraries and facts.has_thread("pt_nccl")
        if uses_nccl and not facts.is_watched(fd):
            return _likely("NCCL", f"libnccl in {facts.process.pid}", "no epoll watches it")
    return None


def ray(socket: Socket, context: Context) -> Role | None:
    """Match every socket of one of Ray's processes."""
    for facts, _ in _holders(socket, context):
        if facts.role.name == "Ray":
            return _certain("Ray", f"held by {facts.process.name} {facts.process.pid}")
    return None


def connection_of_listener(socket: Socket, context: Context) -> Role | None:
    """Match a connection with a listener of the engine at one of its ends."""
    # The peer counts only where the engine holds it: another host may have the same address and port.
    for end in (socket.local, socket.peer if socket.peer_holders else None):
        listener = _listener_at(end, socket.netns, context)
        if listener is None or listener.role.name not in CONNECTIONS:
            continue
        name = CONNECTIONS[listener.role.name]
        return Role(
            name=name,
            confidence=listener.role.confidence,
            evidence=(f"one end is the {listener.role.name} at {listener.local}",),
        )
    return None


def gloo_pair(socket: Socket, context: Context) -> Role | None:
    """Match a connection that a Gloo loop watches."""
    for facts, fd in _holders(socket, context):
        epoll = facts.epoll_on(fd, "Gloo")
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
CONNECTION_RULES: tuple[Rule, ...] = (ray, zmq_queue, connection_of_listener, gloo_pair)


# Unix sockets and shared memory ---------------------------------------------------------------


def unix_role(socket: UnixSocket, context: Context) -> Role:
    """Return what a unix socket is for."""
    path = socket.path or ""
    if CONTROL_PATH.fullmatch(path):
        return _certain(CONTROL, f"path {path}")
    queue = context.queues.role(socket.inode)
    if queue:
        return queue
    if path.startswith("@tmp/nccl-socket"):
        return _certain("NCCL proxy", f"name {path}")
    if path.startswith("@cuda-uvmfd"):
        return _certain("CUDA driver", f"name {path}")
    if path and path == _option(context, "--uds"):
        return _certain(HTTP_API, f"the command names --uds {path}")
    return _signal_pair(socket, context) or UNKNOWN


def _signal_pair(socket: UnixSocket, context: Context) -> Role | None:
    """Match the socket pair by which signals wake up Python's event loop, both ends in one process."""
    pids = {holder.pid for holder in socket.holders}
    if socket.path or not pids or pids != {holder.pid for holder in socket.peer_holders}:
        return None
    facts = context.facts.get(next(iter(pids)))
    ends = (*socket.holders, *socket.peer_holders)
    if facts and any(facts.epoll_on(end.fd, "event loop") for end in ends):
        return _certain("signal pair", "both ends in one process", "its event loop watches one")
    return None


def shared_roles(
    files: Iterable[SharedFile], facts: Mapping[int, ProcessFacts]
) -> tuple[SharedFile, ...]:
    """Return the files of /dev/shm with their roles."""
    files = tuple(files)
    rings = Counter(file.pids for file in files if _base_name(file).startswith("psm_"))
    return tuple(
        msgspec.structs.replace(file, role=shared_role(file, facts, rings[file.pids]))
        for file in files
    )


def shared_role(file: SharedFile, facts: Mapping[int, ProcessFacts], rings: int) -> Role:
    """Return the role of a file by its name; the processes that map the file map `rings` rings in all."""
    name = _base_name(file)
    if "cpushm" in name:
        return _certain("CPU tensor-parallel buffer", f"name {name}")
    if name.startswith("psm_"):
        # With one worker the ring to it and the ring from it are mapped by the same processes.
        role = f"{RING}, {_ring_kind(file, facts)}" if rings == 1 else RING
        return _likely(role, f"name {name}", f"{len(file.pids)} processes map it")
    for prefix, role in _SHARED_FILE_ROLES.items():
        if name.startswith(prefix):
            return _likely(role, f"name {name}")
    return UNKNOWN


def _ring_kind(file: SharedFile, facts: Mapping[int, ProcessFacts]) -> str:
    workers = [pid for pid in file.pids if pid in facts and role_kind(facts[pid].role) == "Worker"]
    if len(workers) == len(file.pids):
        return "group broadcast"
    return "worker response" if len(workers) == 1 else "worker broadcast"


def _base_name(file: SharedFile) -> str:
    return file.name.rpartition("/")[2]


# Helpers of the rules --------------------------------------------------------------------------


def commanded_port(context: Context) -> int | None:
    """Return the port that the engine's command names; vLLM's default 8000 where it names none."""
    text = _option(context, "--port")
    if text is None:
        return DEFAULT_PORT if any(_is_server(f) for f in context.facts.values()) else None
    return int(text) if text.isdecimal() else None


def _option(context: Context, name: str) -> str | None:
    values = (option_value(f.process.command, name) for f in context.facts.values())
    return next((value for value in values if value is not None), None)


def _with_role(socket: Socket, rules: Iterable[Rule], context: Context) -> Socket:
    """Return the socket with the first role that is certain, else the first that is likely."""
    roles = [role for rule in rules if (role := rule(socket, context)) is not None]
    roles.sort(key=lambda role: role.confidence != "certain")
    return msgspec.structs.replace(socket, role=roles[0] if roles else UNKNOWN)


def _listener_at(end: Endpoint | None, netns: int, context: Context) -> Socket | None:
    if end is None:
        return None
    for listener in context.listeners.get((netns, end.port), ()):
        address = listener.local.address
        if address in WILDCARDS or plain(address) == plain(end.address):
            return listener
    return None


def _holders(socket: Socket | UnixSocket, context: Context) -> list[tuple[ProcessFacts, int]]:
    return [(context.facts[h.pid], h.fd) for h in socket.holders if h.pid in context.facts]


def _is_server(facts: ProcessFacts) -> bool:
    return facts.role.name.startswith(("API server", "launcher"))


def _certain(name: str, *evidence: str) -> Role:
    return _role(name, "certain", evidence)


def _likely(name: str, *evidence: str) -> Role:
    return _role(name, "likely", evidence)


def _role(name: str, confidence: Literal["certain", "likely"], evidence: tuple[str, ...]) -> Role:
    return Role(name=name, confidence=confidence, evidence=evidence)
