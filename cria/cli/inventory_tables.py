"""The tables of `cria inspect`: one function per part of an inventory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from cria.cli.documents import Stored
from cria.cli.output import age, holder, layout, middle, role, size, table
from cria.model.inventory import Descriptor, Inventory, Process, Role, Socket, UnixSocket

# As `ss` writes it: the whole word takes the room of the role.
_STATES = {"ESTABLISHED": "ESTAB"}
_NOTED = ("io_uring", "inotify", "memfd")


def summary(inventory: Inventory, target: str, stored: Stored | None = None) -> str:
    """Return what an engine is, in a few lines; and of one that is `stored`, how."""
    topology, root = inventory.topology, inventory.root
    kinds = Counter(socket.state for socket in inventory.sockets)
    rows = [
        ("engine" if inventory.is_engine else "process tree", target),
        ("model", topology.model or "?"),
        ("layout", f"{layout(topology)}, {len(inventory.processes)} processes"),
        ("url", topology.url or "none: nobody listens for HTTP"),
        ("age", age(inventory.taken - root.started)),
        ("sockets", f"{_counts(kinds)}; {len(inventory.unix_sockets)} unix"),
    ]
    if stored is None:
        expected = f"about {size(inventory.checkpoint_bytes())}{_zeros(inventory)}"
        rows.append(("checkpoint", expected))
    else:
        rows += _stored(stored)
    return "\n".join(f"{name:<13} {value}" for name, value in rows)


def _stored(stored: Stored) -> list[tuple[str, str]]:
    programs = f"cria {stored.cria_version}, CRIU {stored.criu_version}, Linux {stored.kernel}"
    rows = [
        ("checkpoint", f"{size(stored.bytes)} on the disk, made with {programs}"),
        ("taken", f"{stored.created} on {stored.host}"),
    ]
    if (still := stored.quiesced) is not None:
        met = f"workers: {still.workers}, met in {still.groups} groups"
        given_back = f"{size(still.dropped_bytes)} given back"
        rows.append(("still point", f"requests: {still.inflight}; {met}; {given_back}"))
    else:
        rows.append(("still point", f"none: {stored.no_quiesce or 'an older cria took it'}"))
    told = f"none: {stored.no_canary or 'an older cria took it'}"
    rows.append(("canary", f"{stored.canary_tokens} tokens" if stored.canary_tokens else told))
    if (taken := stored.gpu_state) is not None:
        ranks = ", ".join(map(str, taken.ranks))
        rows.append(("GPU memory", f"{size(taken.taken_bytes)}, of PID {ranks}"))
        rows += [("GPU", f"{gpu.uuid}  {gpu.name}") for gpu in taken.gpus]
    return rows


def processes(inventory: Inventory, *, as_tree: bool = False) -> str:
    """Return the processes with their roles."""
    depth = _depths(inventory.processes)
    rows = [
        (
            "  " * depth[each.pid] * as_tree + str(each.pid),
            role(each.role),
            str(each.threads),
            age(inventory.taken - each.started),
            size(each.memory.resident),
            middle(each.cgroup, 30),
        )
        for each in inventory.processes
    ]
    return table(("pid", "role", "threads", "age", "memory", "cgroup"), rows)


def sockets(inventory: Inventory, *, evidence: bool = False) -> str:
    """Return the TCP and UDP sockets."""
    roles = _roles(inventory)
    rows = [
        (
            each.protocol,
            _STATES.get(each.state, each.state),
            middle(str(each.local), 18),
            _peer(each, roles),
            _queues(each),
            holder(each.holders, roles),
            role(each.role),
        )
        for each in inventory.sockets
    ]
    lines = table(("", "state", "local", "peer", "queue", "held by", "role"), rows)
    return _told(lines, inventory.sockets) if evidence else lines


def unix_sockets(inventory: Inventory, *, evidence: bool = False) -> str:
    """Return the unix sockets."""
    roles = _roles(inventory)
    shown = sorted(inventory.unix_sockets, key=lambda each: (each.role.name, each.inode))
    rows = [
        (
            _STATES.get(each.state, each.state),
            holder(each.holders, roles),
            holder(each.peer_holders, roles),
            middle(each.path or "-", 15),
            role(each.role),
        )
        for each in shown
    ]
    lines = table(("unix", "held by", "peer", "path", "role"), rows)
    return _told(lines, shown) if evidence else lines


def groups(inventory: Inventory) -> str:
    """Return the process groups of torch.distributed."""
    rows = [
        (
            str(each.number),
            each.backend,
            str(len(each.members)),
            middle(", ".join(f"{m.pid} {m.listener}" for m in each.members), 76),
        )
        for each in inventory.groups
    ]
    return table(("group", "backend", "ranks", "members"), rows)


def named_groups(inventory: Inventory) -> str:
    """Return the process groups by torch's own names, as the engine told them."""
    rows = [
        (each.name, each.backend, ", ".join(map(str, each.ranks)))
        for each in inventory.named_groups
    ]
    return table(("torch's group", "backend", "ranks"), rows)


def files(inventory: Inventory) -> str:
    """Return shared memory, and the descriptors a dump has to care about."""
    parts = [_shared(inventory), _noted(inventory), _totals(inventory)]
    return "\n\n".join(part for part in parts if part)


def memory(inventory: Inventory) -> str:
    """Return the memory of each process by kind."""
    rows = [
        (
            str(each.pid),
            role(each.role),
            size(each.memory.resident),
            size(each.memory.anonymous),
            "?" if each.memory.zero is None else f"{size(each.memory.zero)}",
            size(each.memory.file),
            size(each.memory.shared),
            size(each.memory.swapped),
        )
        for each in inventory.processes
    ]
    head = ("pid", "role", "resident", "anonymous", "of it zero", "files", "shared", "swapped")
    total = inventory.checkpoint_bytes()
    zero = inventory.zero_bytes() or 0
    without = f", about {size(max(0, total - zero))} without zero pages" if zero else ""
    return f"{table(head, rows)}\n\ncheckpoint: about {size(total)}{without}"


def _shared(inventory: Inventory) -> str:
    rows = [
        (
            middle(each.path or f"{each.name} (deleted)", 31),
            size(each.size_bytes),
            size(each.allocated_bytes),
            f"{each.pids[0]}{f' +{len(each.pids) - 1}' * (len(each.pids) > 1)}",
            role(each.role),
        )
        for each in inventory.shared_files
    ]
    return table(("shared file", "size", "in use", "pids", "role"), rows) if rows else ""


def _noted(inventory: Inventory) -> str:
    rows = [
        (str(each.pid), str(each.fd), what, middle(each.path or each.target, 60))
        for each in inventory.descriptors
        for what in _remarks(each)
    ]
    return table(("pid", "fd", "what", "of"), rows) if rows else ""


def _remarks(each: Descriptor) -> Iterator[str]:
    """Say why a descriptor deserves a line of its own."""
    if each.kind in _NOTED:
        yield each.kind
    elif each.deleted:
        yield "deleted file"
    elif each.kind == "device" and each.path not in ("/dev/null", "/dev/zero", "/dev/urandom"):
        yield "device"
    elif each.kind == "socket" and each.path:
        yield "other socket"
    for lock in each.locks:
        yield f"lock {lock.split()[0]}"


def _totals(inventory: Inventory) -> str:
    kinds: Counter[str] = Counter(each.kind for each in inventory.descriptors)
    return f"descriptors   {_counts(kinds)}"


def _counts(kinds: Counter[str]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())) or "none"


def _zeros(inventory: Inventory) -> str:
    zero = inventory.zero_bytes()
    return "" if zero is None else f", of it about {size(zero)} zero pages"


def _roles(inventory: Inventory) -> dict[int, str]:
    return {each.pid: each.role.name for each in inventory.processes}


def _peer(each: Socket, roles: dict[int, str]) -> str:
    if each.peer is None:
        return "-"
    if each.peer_holders:
        return holder(each.peer_holders, roles)
    return f"outside {each.peer}"


def _queues(each: Socket) -> str:
    if each.backlog is not None:
        return f"{each.receive_queue}/{each.backlog}"
    return f"{each.receive_queue}+{each.send_queue}"


def _told(lines: str, shown: Sequence[Socket | UnixSocket]) -> str:
    """Put under each row what its role was read from."""
    head, *rows = lines.splitlines()
    told = [f"{row}\n{_because(each.role)}" for row, each in zip(rows, shown, strict=True)]
    return "\n".join([head, *told])


def _because(role: Role) -> str:
    return f"     {role.confidence}: {'; '.join(role.evidence) or 'no sign was found'}"


def _depths(found: Sequence[Process]) -> dict[int, int]:
    depths: dict[int, int] = {}
    for each in found:
        depths[each.pid] = depths.get(each.parent, -1) + 1
    return depths
