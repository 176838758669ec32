"""The tables of `cria inspect`: one function for each part of an inventory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from cria.cli.output import middle, properties, short_state, table
from cria.model.units import age, size

if TYPE_CHECKING:
    from cria.cli.inventory_documents import Stored
    from cria.model.inventory import (
        Descriptor,
        Holder,
        Inventory,
        Process,
        Role,
        Socket,
        Topology,
        UnixSocket,
    )

_NOTABLE_KINDS = ("io_uring", "inotify", "memfd")
_HARMLESS_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")


def summary(inventory: Inventory, target: str, stored: Stored | None = None) -> str:
    """Return what an engine is, one fact on a line, and how its checkpoint was taken where it is stored."""
    topology = inventory.topology
    states = Counter(socket.state for socket in inventory.sockets)
    rows = [
        ("engine" if inventory.is_engine else "process tree", target),
        ("model", topology.model or "?"),
        ("layout", f"{layout(topology)}, {len(inventory.processes)} processes"),
        ("url", topology.url or "none: no process listens for HTTP"),
        ("age", age(inventory.taken - inventory.root.started)),
        ("sockets", f"{_counts(states)}; {len(inventory.unix_sockets)} unix"),
    ]
    if stored is not None:
        return properties([*rows, *_stored_rows(stored)])
    zero = inventory.zero_bytes()
    zero_pages = "" if zero is None else f", of it about {size(zero)} zero pages"
    expected = f"about {size(inventory.checkpoint_bytes())}{zero_pages}"
    return properties([*rows, ("checkpoint", expected)])


def _stored_rows(stored: Stored) -> Iterator[tuple[str, str]]:
    programs = f"cria {stored.cria_version}, CRIU {stored.criu_version}, Linux {stored.kernel}"
    yield "checkpoint", f"{size(stored.bytes)} on the disk, written by {programs}"
    yield "taken", f"{stored.created} on {stored.host}"
    if (quiesced := stored.quiesced) is not None:
        workers = f"{quiesced.workers} workers in {quiesced.groups} groups"
        dropped = f"{size(quiesced.dropped_bytes)} of caches dropped"
        yield "quiesced", f"requests: {quiesced.inflight}; {workers}; {dropped}"
    else:
        yield "quiesced", f"no: {stored.no_quiesce or 'taken by an older cria'}"
    if stored.canary_tokens:
        yield "canary", f"{stored.canary_tokens} tokens"
    else:
        yield "canary", f"none: {stored.no_canary or 'taken by an older cria'}"
    if (gpu_state := stored.gpu_state) is not None:
        ranks = ", ".join(map(str, gpu_state.ranks))
        yield "GPU memory", f"{size(gpu_state.taken_bytes)}, of PID {ranks}"
        for gpu in gpu_state.gpus:
            yield "GPU", f"{gpu.uuid}  {gpu.name}"


def processes(inventory: Inventory) -> str:
    """Return the processes with their roles, each indented below its parent."""
    depths = _depths(inventory.processes)
    rows = [
        (
            "  " * depths[process.pid] + str(process.pid),
            role(process.role),
            str(process.threads),
            age(inventory.taken - process.started),
            size(process.memory.resident),
            middle(process.cgroup, 30),
        )
        for process in inventory.processes
    ]
    return table(("pid", "role", "threads", "age", "memory", "cgroup"), rows)


def sockets(inventory: Inventory, *, evidence: bool = False) -> str:
    """Return the TCP and UDP sockets; with `evidence` a line below each says what its role was read from."""
    names = _role_names(inventory)
    rows = [
        (
            socket.protocol,
            short_state(socket.state),
            middle(str(socket.local), 18),
            _peer(socket, names),
            _queues(socket),
            holder(socket.holders, names),
            role(socket.role),
        )
        for socket in inventory.sockets
    ]
    text = table(("", "state", "local", "peer", "queue", "held by", "role"), rows)
    return _with_evidence(text, inventory.sockets) if evidence else text


def unix_sockets(inventory: Inventory, *, evidence: bool = False) -> str:
    """Return the unix sockets; with `evidence` a line below each says what its role was read from."""
    names = _role_names(inventory)
    ordered = sorted(inventory.unix_sockets, key=lambda socket: (socket.role.name, socket.inode))
    rows = [
        (
            short_state(socket.state),
            holder(socket.holders, names),
            holder(socket.peer_holders, names),
            middle(socket.path or "-", 15),
            role(socket.role),
        )
        for socket in ordered
    ]
    text = table(("unix", "held by", "peer", "path", "role"), rows)
    return _with_evidence(text, ordered) if evidence else text


def all_sockets(inventory: Inventory, *, evidence: bool = False) -> Iterator[str]:
    """Yield a table for each kind of socket, and one for the process groups that they connect."""
    yield sockets(inventory, evidence=evidence)
    yield unix_sockets(inventory, evidence=evidence)
    yield groups(inventory)
    if inventory.named_groups:
        yield named_groups(inventory)


def groups(inventory: Inventory) -> str:
    """Return the process groups of torch.distributed."""
    rows = [
        (
            str(group.number),
            group.backend,
            str(len(group.members)),
            middle(", ".join(f"{member.pid} {member.listener}" for member in group.members), 76),
        )
        for group in inventory.groups
    ]
    return table(("group", "backend", "ranks", "members"), rows)


def named_groups(inventory: Inventory) -> str:
    """Return the process groups under the names that torch gives them in the engine."""
    rows = [
        (group.name, group.backend, ", ".join(map(str, group.ranks)))
        for group in inventory.named_groups
    ]
    return table(("torch's group", "backend", "ranks"), rows)


def files(inventory: Inventory) -> str:
    """Return shared memory, the descriptors that matter to a dump, and how many there are of each kind."""
    kinds: Counter[str] = Counter(descriptor.kind for descriptor in inventory.descriptors)
    parts = [_shared_files(inventory), _notable_descriptors(inventory)]
    return "\n\n".join([*filter(None, parts), properties([("descriptors", _counts(kinds))])])


def memory(inventory: Inventory) -> str:
    """Return the memory of each process by kind, and the size that a checkpoint would have."""
    rows = [
        (
            str(process.pid),
            role(process.role),
            size(process.memory.resident),
            size(process.memory.anonymous),
            "?" if process.memory.zero is None else size(process.memory.zero),
            size(process.memory.file),
            size(process.memory.shared),
            size(process.memory.swapped),
        )
        for process in inventory.processes
    ]
    head = ("pid", "role", "resident", "anonymous", "of it zero", "files", "shared", "swapped")
    total = inventory.checkpoint_bytes()
    zero = inventory.zero_bytes() or 0
    without = f", about {size(max(0, total - zero))} without zero pages" if zero else ""
    return f"{table(head, rows)}\n\ncheckpoint: about {size(total)}{without}"


def layout(topology: Topology) -> str:
    """Return the dimensions that are larger than one, and the number of API servers if there are several."""
    dimensions = {"TP": topology.tensor, "PP": topology.pipeline, "DP": topology.data}
    parts = [f"{name}={count}" for name, count in dimensions.items() if count > 1]
    if topology.api_servers > 1:
        parts.append(f"API={topology.api_servers}")
    return " ".join(parts) or "TP=1"


def holder(holders: Sequence[Holder], roles: Mapping[int, str], width: int = 20) -> str:
    """Return PID, descriptor and role of a socket's first holder, and how many more there are."""
    if not holders:
        return "-"
    first = holders[0]
    more = f" +{len(holders) - 1}" if len(holders) > 1 else ""
    text = f"{first.pid}:{first.fd}{more} {roles.get(first.pid, '?')}"
    return text if len(text) <= width else f"{text[: width - 1]}…"


def role(role: Role) -> str:
    """Return a role's name; a question mark follows one that is likely, not certain."""
    return role.name if role.confidence != "likely" else f"{role.name}?"


def _shared_files(inventory: Inventory) -> str:
    rows = [
        (
            middle(file.path or f"{file.name} (deleted)", 31),
            size(file.size_bytes),
            size(file.allocated_bytes),
            f"{file.pids[0]}{f' +{len(file.pids) - 1}' * (len(file.pids) > 1)}",
            role(file.role),
        )
        for file in inventory.shared_files
    ]
    return table(("shared file", "size", "in use", "pids", "role"), rows) if rows else ""


def _notable_descriptors(inventory: Inventory) -> str:
    rows = [
        (
            str(descriptor.pid),
            str(descriptor.fd),
            remark,
            middle(descriptor.path or descriptor.target, 60),
        )
        for descriptor in inventory.descriptors
        for remark in _remarks(descriptor)
    ]
    return table(("pid", "fd", "what", "of"), rows) if rows else ""


def _remarks(descriptor: Descriptor) -> Iterator[str]:
    """Yield why a descriptor matters to a dump; most do not."""
    if descriptor.kind in _NOTABLE_KINDS:
        yield descriptor.kind
    elif descriptor.deleted:
        yield "deleted file"
    elif descriptor.kind == "device" and descriptor.path not in _HARMLESS_DEVICES:
        yield "device"
    elif descriptor.kind == "socket" and descriptor.path:
        yield "other socket"
    for lock in descriptor.locks:
        yield f"lock {lock.split()[0]}"


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counter.items())) or "none"


def _role_names(inventory: Inventory) -> dict[int, str]:
    return {process.pid: process.role.name for process in inventory.processes}


def _peer(socket: Socket, roles: Mapping[int, str]) -> str:
    if socket.peer is None:
        return "-"
    if socket.peer_holders:
        return holder(socket.peer_holders, roles)
    return f"outside {socket.peer}"


def _queues(socket: Socket) -> str:
    if socket.backlog is not None:
        return f"{socket.receive_queue}/{socket.backlog}"
    return f"{socket.receive_queue}+{socket.send_queue}"


def _with_evidence(text: str, shown: Sequence[Socket | UnixSocket]) -> str:
    """Put a line below each row of a table: how certain the role is, and what it was read from."""
    head, *rows = text.splitlines()
    lines = [head]
    for row, socket in zip(rows, shown, strict=True):
        evidence = "; ".join(socket.role.evidence) or "nothing points to a role"
        lines += [row, f"     {socket.role.confidence}: {evidence}"]
    return "\n".join(lines)


def _depths(processes: Sequence[Process]) -> dict[int, int]:
    """Return how deep each process is in the tree; a parent comes before its children."""
    depths: dict[int, int] = {}
    for process in processes:
        depths[process.pid] = depths.get(process.parent, -1) + 1
    return depths
