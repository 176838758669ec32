"""Find the control sockets that cria's agents have in a process tree. Standard library only, for Python 3.9.

This file is copied to nodes for the action script, and sent to containers, both without the rest of cria.
"""

from __future__ import annotations

import os

_ACCEPTS_CONNECTIONS = "00010000"  # __SO_ACCEPTCON in the column Flags: a socket that listens


def find_control_sockets(root: int, pids: list[int] | None = None) -> list[tuple[int, str]]:
    """Return the control sockets of the processes `pids`, or of the tree below `root`: a PID and the path it sees.

    Where there is none, only /proc/ROOT/net/unix is read. Raises OSError, PermissionError where a process must not
    be looked into: an engine that cannot be seen is not an engine that is not there.
    """
    with open(f"/proc/{root}/net/unix", errors="surrogateescape") as file:
        rows = [line.rstrip("\n").split(None, 7) for line in file if "/cria-" in line]
    # Columns: Num RefCount Protocol Flags Type St Inode Path. A socket's name may have line breaks in it.
    rows = [row for row in rows if len(row) == 8 and row[3] == _ACCEPTS_CONNECTIONS]
    paths = {row[6]: row[7] for row in rows if _is_control_socket(row[7])}
    if not paths:
        return []
    holders: dict[str, int] = {}
    for pid in descendants(root) if pids is None else pids:
        for inode in _socket_inodes(pid) & set(paths):
            holders.setdefault(inode, pid)
    return [(pid, paths[inode]) for inode, pid in holders.items()]


def descendants(root: int) -> list[int]:
    """Return the process `root` and all that descend from it, parents before children."""
    pids = [root]
    for pid in pids:
        for thread in _list_proc(f"/proc/{pid}/task"):
            try:
                with open(f"/proc/{pid}/task/{thread}/children") as file:
                    pids += map(int, file.read().split())
            except OSError:  # the thread has ended
                continue
    return pids


def pids_in_our_namespace(pids: list[int]) -> list[int]:
    """Return the PIDs of processes of /proc as our own PID namespace numbers them.

    The two differ at a restore, where CRIU runs the action script in the container's PID namespace.
    """
    depth = len(_namespace_pids("self")) - 1
    return [number for pid in pids for number in _namespace_pids(pid)[depth : depth + 1]]


def _is_control_socket(path: str) -> bool:
    name = path.rpartition("/")[2]
    return path.startswith("/") and name.startswith("cria-") and name.endswith(".sock")


def _namespace_pids(pid: int | str) -> list[int]:
    """Return the PIDs of a process in the namespace of /proc and in each one below, down to its own."""
    try:
        with open(f"/proc/{pid}/status") as file:
            line = next(line for line in file if line.startswith("NSpid:"))
    except (OSError, StopIteration):
        return []
    return [int(number) for number in line.split()[1:]]


def _socket_inodes(pid: int) -> set[str]:
    inodes = set()
    for descriptor in _list_proc(f"/proc/{pid}/fd"):
        try:
            target = os.readlink(f"/proc/{pid}/fd/{descriptor}")
        except OSError:
            continue
        if target.startswith("socket:["):
            inodes.add(target[len("socket:[") : -1])
    return inodes


def _list_proc(directory: str) -> list[str]:
    """Return the names in a directory of /proc; none when its process has ended. Raises PermissionError."""
    try:
        return os.listdir(directory)
    except PermissionError:
        raise
    except OSError:
        return []
