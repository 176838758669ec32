"""Find the processes of a container that runs on this host, and thaw it."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

from cria.errors import NoSuchProcess
from cria.kubernetes.kubelet.pods import RunningContainer
from cria.kubernetes.node import criu_action
from cria.system import procfs

CTR_SECONDS = 20.0
FREEZE_SECONDS = 1.0


def find_root_process(container: RunningContainer, proc: Path = procfs.PROC) -> int:
    """Return the PID of a container's first process: the path of its cgroup has the container's ID.

    Raises NoSuchProcess where the container is on another host.
    """
    parents: dict[int, int] = {}
    for pid in procfs.pids(proc):
        try:
            cgroups = (proc / str(pid) / "cgroup").read_text()
        except OSError:  # the process has ended
            continue
        if container.container_id and container.container_id in cgroups:
            stat = procfs.stat(pid, proc)
            if stat is not None:
                parents[pid] = stat.parent
    roots = [pid for pid, parent in parents.items() if parent not in parents]
    if not roots:
        raise NoSuchProcess(
            f"no process on this host belongs to {container}",
            details=f"it is on node {container.node}",
            remedy="run cria on that node, in its PID namespace (hostPID), or: --quiesce exec",
        )
    return min(roots)


def thaw(container: RunningContainer) -> bool:
    """Let a container run that a cancelled checkpoint leaves frozen on this host. Returns whether it was frozen.

    containerd freezes it also when the request is cancelled at that moment, so that this looks for a second. Where
    the runtime can be asked, it thaws the container: otherwise containerd keeps it in the state PAUSED, runs no
    command in it, and does not freeze it for a later checkpoint.
    """
    try:
        file, _, running = criu_action.find_freezer(find_root_process(container))
        if file is None or not _is_frozen_soon(file):
            return False
        if not _resume_task(container):
            criu_action.write(file, running)
    except (NoSuchProcess, OSError):  # on another host, ended, or not ours to thaw
        return False
    return True


def _is_frozen_soon(file: str) -> bool:
    deadline = time.monotonic() + FREEZE_SECONDS
    while not criu_action.is_frozen(file):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def _resume_task(container: RunningContainer) -> bool:
    ctr = shutil.which("ctr")
    if ctr is None:
        return False
    command = [ctr, "--namespace", "k8s.io", "task", "resume", container.container_id]
    try:
        result = subprocess.run(command, capture_output=True, timeout=CTR_SECONDS, check=False)
    except (OSError, subprocess.SubprocessError):
        return False
    return result.returncode == 0
