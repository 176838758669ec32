#!/usr/bin/python3 -IS
"""CRIU's action script: bring the engines of a process tree to a still point before a dump, and let them go on after.

It is copied to nodes with what it imports and is run by CRIU at every stage, so it needs nothing but Python 3.9,
looks at one file of /proc where there is nothing to do, and imports what it needs when it needs it.
"""

from __future__ import annotations

import os
import sys
import time

TYPE_CHECKING = False  # importing typing, re or contextlib takes longer than all that is done here
if TYPE_CHECKING:
    from typing import Any

SETTINGS: dict[str, Any] = {"on_failure": "refuse", "inflight": "keep", "seconds": 60.0}
RESUME_SECONDS = 10.0
GRACE_SECONDS = 5.0  # an engine keeps the time itself, and says what it waited for
LEASE_SECONDS = 60.0  # CRIU freezes them long before
FROZEN_SECONDS = 600.0  # how long a runtime may keep a container frozen after its dump
MOST_BYTES = 1 << 20


class Failed(Exception):
    """An engine could not be brought to a still point; the text is for a person."""


def main() -> int:
    """The exit status for this stage: CRIU gives up what it does when it is not 0."""
    handle = STAGES.get(os.environ.get("CRTOOLS_SCRIPT_ACTION", ""))
    root = int(os.environ.get("CRTOOLS_INIT_PID", "0"))
    if handle is None or not root:
        return 0
    while os.open(os.devnull, os.O_RDWR) < 2:
        pass  # CRIU starts us without a standard input: what we open must not take its place
    return handle(root)


def before_dump(root: int) -> int:
    """Pause every engine, and leave somebody behind who resumes them when CRIU has ended, however it ends."""
    begin = time.monotonic()
    engines: list[Engine] = []
    refuse = True
    try:
        engines = find_engines(root)
        if not engines:
            return 0
        settings = read_settings()
        refuse = settings["on_failure"] != "pass"
        criu = os.pidfd_open(os.getppid())
        with Thawed(root):
            stand_still(engines, settings["inflight"], settings["seconds"], LEASE_SECONDS)
    except (Failed, OSError, ValueError) as error:
        resume_later(None, engines)
        outcome = "the dump is refused" if refuse else "it is dumped as it stands"
        say(f"no still point, {outcome}: {error or type(error).__name__}")
        return 1 if refuse else 0
    resume_later(criu, engines)
    say(f"{len(engines)} engine(s) at a still point after {time.monotonic() - begin:.3f} s")
    return 0


def after_dump(root: int) -> int:
    """Everything stands still and the images are whole: what CRIU leaves out of them is added."""
    try:
        kept = shared_memory().keep(root, descendants(root), images()) if find_engines(root) else 0
    except (OSError, ValueError) as error:
        say(f"its shared memory could not be kept, the dump is refused: {error}")
        return 1
    if kept:
        say(f"{kept} file(s) of /dev/shm kept")
    return 0


def before_restore(root: int) -> int:
    """Its mounts are there and nothing is opened yet."""
    try:
        put = shared_memory().put_back(root, images())
    except (OSError, ValueError) as error:
        say(f"its shared memory could not be put back, the restore is refused: {error}")
        return 1
    if put:
        say(f"{put} file(s) of /dev/shm put back")
    return 0


def after_restore(root: int) -> int:
    """The restored copy wakes up at its still point. It runs already, so nothing that fails is a reason to end it."""
    try:
        for engine in find_engines(root):
            engine.ask("resume", RESUME_SECONDS)
            say("the restored engine goes on")
    except (Failed, OSError, ValueError) as error:
        say(f"the restored engine goes on by itself within a minute: {error}")
    return 0


STAGES = {
    "pre-dump": before_dump,
    "post-dump": after_dump,
    "post-setup-namespaces": before_restore,
    "post-resume": after_restore,
}


def images() -> str:
    return os.environ["CRTOOLS_IMAGE_DIR"]


def shared_memory() -> Any:
    """The module that lies beside this file."""
    import importlib

    sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))
    return importlib.import_module("criu_shared_memory")


def say(text: str) -> None:
    """CRIU puts it into its own log."""
    print(f"cria: {text}", file=sys.stderr)


def read_settings() -> dict[str, Any]:
    """Those of criu-action.json beside this file, over what is usual. Raises OSError, ValueError."""
    import json

    path = os.path.splitext(os.path.abspath(__file__))[0] + ".json"
    if not os.path.exists(path):
        return SETTINGS
    with open(path) as file:
        return {**SETTINGS, **json.load(file)}


# Who is there ----------------------------------------------------------------------------------


def find_engines(root: int, tree: list[int] | None = None) -> list[Engine]:
    """The control sockets that processes of `tree` listen on: without it, of the tree below `root`."""
    with open(f"/proc/{root}/net/unix", errors="surrogateescape") as file:
        rows = [line.rstrip("\n").split(None, 7) for line in file if "/cria-" in line]
    # Columns: Num RefCount Protocol Flags Type St Inode Path; __SO_ACCEPTCON is what a listener has. Any
    # process may name a socket with line breaks in it.
    rows = [row for row in rows if len(row) == 8 and row[3] == "00010000"]
    listening = {row[6]: row[7] for row in rows if is_control(row[7])}
    if not listening:
        return []
    tree = descendants(root) if tree is None else tree
    known = {number for pid in tree for number in as_we_number(pid)}
    found: dict[str, Engine] = {}
    for pid in tree:
        for inode in held_sockets(pid) & set(listening):
            found.setdefault(inode, Engine(pid, listening[inode], known))
    return list(found.values())


def is_control(path: str) -> bool:
    """Whether the part of cria inside an engine names its socket so."""
    name = path.rpartition("/")[2]
    return path.startswith("/") and name.startswith("cria-") and name.endswith(".sock")


def descendants(root: int) -> list[int]:
    tree = [root]
    for pid in tree:
        for thread in listed(f"/proc/{pid}/task"):
            try:
                with open(f"/proc/{pid}/task/{thread}/children") as file:
                    tree += map(int, file.read().split())
            except OSError:  # it has just ended
                continue
    return tree


def as_we_number(pid: int) -> list[int]:
    """The PID of a process of /proc in our own namespace, which at a restore can be the container's."""
    depth = len(numbers("self")) - 1
    return numbers(pid)[depth : depth + 1]


def numbers(pid: int | str) -> list[int]:
    """The PIDs of a process, in the namespace of /proc and in each one below, down to its own."""
    try:
        with open(f"/proc/{pid}/status") as file:
            line = next(line for line in file if line.startswith("NSpid:"))
    except (OSError, StopIteration):
        return []
    return [int(word) for word in line.split()[1:]]


def held_sockets(pid: int) -> set[str]:
    held = set()
    for descriptor in listed(f"/proc/{pid}/fd"):
        try:
            target = os.readlink(f"/proc/{pid}/fd/{descriptor}")
        except OSError:
            continue
        held.add(target[len("socket:[") : -1])
    return held


def listed(directory: str) -> list[str]:
    """The names in a directory of /proc; none when its process has ended. Raises PermissionError."""
    try:
        return os.listdir(directory)
    except PermissionError:  # an engine that cannot be seen is not one that is not there
        raise
    except OSError:
        return []


class Engine:
    """An engine's control socket: `path` is as process `pid` sees it, `known` who may listen there."""

    def __init__(self, pid: int, path: str, known: set[int]) -> None:
        directory, _, self._name = path.rpartition("/")
        self._directory = os.open(f"/proc/{pid}/root{directory}", os.O_PATH | os.O_DIRECTORY)
        self._known = known

    def ask(self, command: str, seconds: float, **words: Any) -> dict[str, Any]:
        """One command, one answer; the engine hangs up. Raises Failed, OSError, ValueError."""
        import json
        import socket

        request = {"command": command, "seconds": seconds, **words}
        deadline = time.monotonic() + seconds + GRACE_SECONDS
        received = b""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(seconds + GRACE_SECONDS)
            connection.connect(f"/proc/self/fd/{self._directory}/{self._name}")
            self._check_who_listens(connection)
            connection.sendall(json.dumps(request).encode() + b"\n")
            while len(received) < MOST_BYTES and (part := connection.recv(65536)):
                received += part
                connection.settimeout(max(0.001, deadline - time.monotonic()))
        answer: dict[str, Any] = json.loads(received)
        if "error" in answer:
            raise Failed(f"{command}: {answer['error']}")
        return answer

    def _check_who_listens(self, connection: Any) -> None:
        """A link in the container's files may lead to a socket elsewhere: that is not ours to command."""
        import socket
        import struct

        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        pid = struct.unpack("3i", credentials)[0]
        if pid not in self._known:
            raise Failed(f"process {pid}, which listens at {self._name}, is not of this tree")


def stand_still(
    engines: list[Engine], inflight: str, seconds: float, lease: float
) -> tuple[list[dict[str, Any]], list[float]]:
    """Bring all engines to a still point within `seconds`; they stand still for `lease` seconds from then on.

    Returns what each said of it, and the leases that are known. Several API servers of one engine share its
    pause: it belongs to the first. Raises Failed, OSError, ValueError; some may then stand still.
    """
    deadline = time.monotonic() + seconds

    def left(least: float) -> float:
        return max(least, round(deadline - time.monotonic(), 1))

    paused = [(e, e.ask("pause", left(0.01), inflight=inflight)) for e in engines]
    ours = [each for each, said in paused if said.get("by_cria", True)]
    stood = [each.ask("quiesce", left(1.0)) for each in engines]
    leases = [renew(each, lease) for each in ours]
    return stood, [each for each in leases if each is not None]


def renew(engine: Engine, lease: float) -> float | None:
    """The seconds it stands still from now on; None where its part of cria is too old. Raises Failed: it went on."""
    try:
        return float(engine.ask("renew", RESUME_SECONDS, lease=lease)["lease_seconds"])
    except Failed as error:
        if "no such command" in str(error):
            return None
        raise


# Letting it go on ------------------------------------------------------------------------------


def resume_later(criu: int | None, engines: list[Engine]) -> None:
    """When `criu` has ended. From a process that outlives this one: CRIU waits for us, the engine for CRIU.

    After that the runtime may still keep the engine frozen; the request waits in its socket.
    """
    import select

    if not engines or os.fork():
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(null, descriptor)
    if criu is not None:
        select.select([criu], [], [])
    for engine in engines:
        try:
            engine.ask("resume", FROZEN_SECONDS)
        except (Failed, OSError, ValueError):  # ended by the dump, or it went on by itself
            continue
    os._exit(0)


# A frozen container ----------------------------------------------------------------------------


class Thawed:
    """Let the cgroup of a process run for a while: containerd freezes a container before it calls CRIU.

    A frozen engine cannot reach a still point. Afterwards it is as the runtime had it. Raises Failed.
    """

    def __init__(self, pid: int) -> None:
        self._file, self._frozen, self._running = freezer(pid)
        self._was_frozen = self._file is not None and is_frozen(self._file)

    def __enter__(self) -> None:
        if self._file and self._was_frozen:
            write(self._file, self._running)

    def __exit__(self, *_error: object) -> None:
        if not (self._file and self._was_frozen):
            return
        deadline = time.monotonic() + 10.0
        write(self._file, self._frozen)
        while not is_frozen(self._file):
            if time.monotonic() > deadline:
                raise Failed(f"{self._file} does not freeze again")
            time.sleep(0.001)
            write(self._file, self._frozen)  # v1 may need it again for tasks that were on their way


def freezer(pid: int) -> tuple[str | None, str, str]:
    """The file that freezes the cgroup of `pid`, and what is written there to freeze and to thaw."""
    with open(f"/proc/{pid}/cgroup") as file:
        paths = dict(line.rstrip("\n").split(":", 2)[1:] for line in file)
    version_1 = next((path for names, path in paths.items() if "freezer" in names.split(",")), None)
    with open("/proc/self/mountinfo") as file:
        mounts = [line.split() for line in file]
    for words in mounts:
        kind = words[words.index("-") + 1]
        if kind == "cgroup" and version_1 and "freezer" in words[-1].split(","):
            return f"{words[4]}{version_1}/freezer.state", "FROZEN", "THAWED"
        if kind == "cgroup2" and not version_1 and "" in paths:
            return f"{words[4]}{paths['']}/cgroup.freeze", "1", "0"
    return None, "", ""


def is_frozen(file: str) -> bool:
    """By cgroup v1 the file itself says so; by v2 another one says when it has come true."""
    version_2 = file.endswith("cgroup.freeze")
    try:
        with open(file.replace("cgroup.freeze", "cgroup.events")) as said:
            return ("frozen 1" if version_2 else "FROZEN") in said.read()
    except FileNotFoundError:
        return False  # the root cgroup cannot be frozen


def write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


if __name__ == "__main__":
    sys.exit(main())
