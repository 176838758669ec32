"""containerd as a node has it, in PID and mount namespaces of its own, so that all of it ends with one process.

Its /etc, /opt and /run are private: a test may install things on "the node", and the host stays as it was.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from cria.criu import program

PREFIX = Path(sys.prefix) / "lib" / "containerd" / "usr"
BUSYBOX = PREFIX / "bin" / "busybox"
PROTO = PREFIX / "share/gocode/src/k8s.io/cri-api/pkg/apis/runtime/v1/api.proto"
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"

# PID 1 of the namespaces; it reaps what the shims leave. The lock of iptables stays the host's.
INIT = """
set -e
cd "$1"
mkdir -p run/lock etc/work opt/work node/etc node/opt
touch /run/xtables.lock run/xtables.lock
mount --bind /run/xtables.lock run/xtables.lock
for top in etc opt; do
    mkdir -p /$top
    mount -t overlay overlay -o lowerdir=/$top,upperdir=node/$top,workdir=$top/work /$top
done
mount --rbind run /run
PATH=$3 "$2" --config config.toml >containerd.log 2>&1
"""

CONFIG = """
version = 3
root = "{state}/root"
state = "{state}/state"
temp = "{state}/temp"
[grpc]
  address = "{state}/containerd.sock"
[plugins."io.containerd.nri.v1.nri"]
  disable = true
[plugins."io.containerd.internal.v1.opt"]
  path = "{state}/opt-containerd"
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "native"
  use_local_image_pull = true
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "{pause}"
  [plugins."io.containerd.cri.v1.images".registry]
    config_path = "{state}/registries"
[plugins."io.containerd.cri.v1.runtime"]
  # A machine that may not lower its own score, or lacks AppArmor, starts containers all the same.
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    container_annotations = ["org.criu.*"]
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
      BinaryName = "{runc}"
      Root = "{state}/runc"
"""


CRIU_LOGS = ("criu-dump", "restore", "criu-restore")


class Containerd:
    """A running containerd: `state` is its directory, `socket` is where it listens.

    `node` is the upper layer of its /etc and /opt: what was written there.
    """

    def __init__(self, state: Path, pause: str, *, criu: Path | None = None) -> None:
        """Start it. `criu` is the directory where it finds CRIU; without CRIU there, the node has none."""
        self.state = state
        self.socket = state / "containerd.sock"
        self.cgroup = f"/{state.name}"
        self.node = state / "node"
        runc = PREFIX / "sbin" / "runc"
        address = pause.partition("/")[0]
        (state / "registries" / address).mkdir(parents=True)
        (state / "registries" / address / "hosts.toml").write_text(f'server = "http://{address}"')
        (state / "config.toml").write_text(CONFIG.format(state=state, pause=pause, runc=runc))
        search_path = (
            f"{criu}:{PREFIX}/bin" if criu else f"{program.find().parent}:{PREFIX}/bin:{PATH}"
        )
        self._process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "unshare", "--pid", "--mount", "--mount-proc", "--fork", "--kill-child",
             "sh", "-c", INIT, "sh", state, PREFIX / "bin" / "containerd", search_path],
            env={"PATH": PATH},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        try:
            wait_for(self.socket.is_socket, lambda: self._process.poll() is not None)
        except AssertionError:
            self.end()
            raise AssertionError(f"containerd does not start:\n{self.log()[-4000:]}") from None

    def log(self) -> str:
        with contextlib.suppress(FileNotFoundError):
            return (self.state / "containerd.log").read_text()
        return ""

    def why_criu_failed(self) -> str:
        """Return the lines about errors in CRIU's logs."""
        logs = (path.read_text() for path in self.state.rglob("*.log") if path.stem in CRIU_LOGS)
        lines = (line for log in logs for line in log.splitlines())
        return "\n".join(line for line in lines if "Error" in line or line.startswith("cria:"))

    def end(self) -> None:
        """End every process, and with the last its mounts; then remove its cgroups and its directory."""
        self._process.kill()  # its child, PID 1 of the namespaces, is killed by --kill-child
        self._process.wait(timeout=60)
        remove(self.state)

    def pid_on_the_host(self, pid: int) -> int:
        """Return the PID on this host of containerd's process `pid`."""
        namespace = os.stat(f"/proc/{self._init}/ns/pid").st_ino
        for status in Path("/proc").glob("[0-9]*/status"):
            with contextlib.suppress(OSError):
                numbers = status.read_text().partition("NSpid:")[2].splitlines()[0].split()
                is_candidate = len(numbers) > 1 and int(numbers[1]) == pid
                if is_candidate and self._holds(int(status.parent.name), namespace):
                    return int(status.parent.name)
        raise ProcessLookupError(f"containerd's process {pid}")

    def _holds(self, pid: int, namespace: int) -> bool:
        """Return whether a process is in containerd's PID namespace, or in one below it."""
        while pid and pid != self._init:
            if os.stat(f"/proc/{pid}/ns/pid").st_ino == namespace:
                return True
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        return pid == self._init

    @property
    def _init(self) -> int:
        children = f"/proc/{self._process.pid}/task/{self._process.pid}/children"
        return int(Path(children).read_text())

    def in_its_namespaces(self, *command: object) -> subprocess.CompletedProcess[str]:
        """Run a command as if on the node."""
        return subprocess.run(
            ["nsenter", "--target", str(self._init), "--pid", "--mount", *map(str, command)],
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip


def remove(state: Path) -> None:
    """Remove cgroups and directory of a containerd that has ended."""
    paths = sorted(cgroups(state.name), reverse=True)
    for cgroup in paths:
        thaw(cgroup)  # in every hierarchy first: a frozen process leaves none of them
    for cgroup in paths:
        with contextlib.suppress(FileNotFoundError):
            for pid in (cgroup / "cgroup.procs").read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            wait_for(lambda path=cgroup: can_be_removed(path))  # type: ignore[misc]
    shutil.rmtree(state)


def cgroups(name: str) -> list[Path]:
    """Return the cgroup `name` and all below it, in every hierarchy."""
    tops = [Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").glob("*/")]
    roots = [top / name for top in tops if (top / name).is_dir()]
    return [
        *roots,
        *(Path(path) for root in roots for path, _, _ in os.walk(root) if Path(path) != root),
    ]


def thaw(cgroup: Path) -> None:
    """Thaw a cgroup: with cgroup v1 a process that was killed while frozen ends only then."""
    with contextlib.suppress(OSError):
        (cgroup / "freezer.state").write_text("THAWED")


def can_be_removed(cgroup: Path) -> bool:
    with contextlib.suppress(OSError):
        cgroup.rmdir()
    return not cgroup.exists()


def wait_for(
    condition: Callable[[], object],
    ended: Callable[[], bool] = lambda: False,
    seconds: float = 60.0,
) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert not ended(), "it has ended"
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
