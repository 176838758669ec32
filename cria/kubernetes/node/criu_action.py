#!/usr/bin/python3 -IS
"""CRIU's action script: quiesce the engines of a process tree before its dump, and resume them after it.

It is copied to nodes with the modules that it loads. CRIU runs it at every stage of every dump and restore, so it
needs nothing but Python 3.9, reads one file of /proc where there is no engine, and imports what it needs when it
needs it.
"""

from __future__ import annotations

import os
import sys
import time

TYPE_CHECKING = False  # importing typing, re or contextlib takes longer than all that is done here
if TYPE_CHECKING:
    from typing import Any, Literal

    from cria.engine.control.client import ControlClient

RESUME_SECONDS = 10.0
LEASE_SECONDS = 60.0  # CRIU freezes the engines long before
FROZEN_SECONDS = 600.0  # how long a runtime may keep a container frozen after its dump
FREEZE_SECONDS = 10.0
CONTROL_CLIENT = "criu_control"  # the name on a node; in cria's own tree it is another


class Settings:
    """What to do about an engine. criu-action.json beside this file may set each field."""

    on_failure: Literal["refuse", "pass"] = "refuse"
    inflight: Literal["keep", "drain", "abort"] = "keep"
    seconds: float = 60.0

    @classmethod
    def read(cls) -> Settings:
        """Read the file, if there is one. Raises OSError, ValueError."""
        import json

        settings = cls()
        path = os.path.splitext(os.path.abspath(__file__))[0] + ".json"
        if os.path.exists(path):
            with open(path) as file:
                settings.__dict__.update(json.load(file))
        return settings


def main() -> int:
    """Handle the stage that CRIU names. Returns the exit status: CRIU fails when it is not 0."""
    handle = STAGES.get(os.environ.get("CRTOOLS_SCRIPT_ACTION", ""))
    root = int(os.environ.get("CRTOOLS_INIT_PID", "0"))
    if handle is None or not root:
        return 0
    while os.open(os.devnull, os.O_RDWR) < 2:
        pass  # CRIU starts the script without a standard input: no file opened here may become one
    return handle(root)


# Stages. They catch every error: the client's own has no name here before the client is loaded ---


def before_dump(root: int) -> int:
    """Quiesce all engines, and leave a process behind that resumes them when CRIU has ended."""
    start = time.monotonic()
    engines: list[ControlClient] = []
    refuse = True
    try:
        engines = find_engines(root)
        if not engines:
            return 0
        settings = Settings.read()
        refuse = settings.on_failure != "pass"
        criu = os.pidfd_open(os.getppid())
        with Thawed(root):
            load(CONTROL_CLIENT).quiesce_all(
                engines, settings.inflight, settings.seconds, LEASE_SECONDS
            )
    except Exception as error:  # noqa: BLE001
        resume_later(None, engines)
        outcome = "the dump is refused" if refuse else "the engine is dumped as it is"
        log(f"not quiesced, {outcome}: {error or type(error).__name__}")
        return 1 if refuse else 0
    resume_later(criu, engines)
    log(f"{len(engines)} engine(s) quiesced after {time.monotonic() - start:.3f} s")
    return 0


def after_dump(root: int) -> int:
    """Add to the images what CRIU leaves out. All processes are stopped, and the images are whole."""
    try:
        finder = load("criu_engines")
        if not finder.find_control_sockets(root):
            return 0
        shared_memory = load("criu_shared_memory")
        count = shared_memory.save(root, finder.descendants(root), os.environ["CRTOOLS_IMAGE_DIR"])
    except Exception as error:  # noqa: BLE001
        log(f"cannot save shared memory, the dump is refused: {error}")
        return 1
    if count:
        log(f"saved {count} file(s) of /dev/shm")
    return 0


def before_restore(root: int) -> int:
    """Put shared memory into a container whose mounts exist and whose processes have opened nothing yet."""
    try:
        count = load("criu_shared_memory").restore(root, os.environ["CRTOOLS_IMAGE_DIR"])
    except Exception as error:  # noqa: BLE001
        log(f"cannot restore shared memory, the restore is refused: {error}")
        return 1
    if count:
        log(f"restored {count} file(s) of /dev/shm")
    return 0


def after_restore(root: int) -> int:
    """Resume the restored engines, which are quiesced as they were at the dump.

    They run already, so that no failure here is a reason to end them.
    """
    try:
        for engine in find_engines(root):
            engine.resume(RESUME_SECONDS)
            log("the restored engine is resumed")
    except Exception as error:  # noqa: BLE001
        log(f"the restored engine resumes by itself within a minute: {error}")
    return 0


STAGES = {
    "pre-dump": before_dump,
    "post-dump": after_dump,
    "post-setup-namespaces": before_restore,
    "post-resume": after_restore,
}


def find_engines(root: int) -> list[ControlClient]:
    """Return a client for each control socket in the tree below `root`. Raises OSError."""
    finder = load("criu_engines")
    sockets = finder.find_control_sockets(root)
    if not sockets:
        return []
    trusted = finder.pids_in_our_namespace(finder.descendants(root))
    engines = [load(CONTROL_CLIENT).ControlClient(pid, path, trusted) for pid, path in sockets]
    for engine in engines:
        engine.hold_directory()  # when CRIU has ended, the PID may be another process's
    return engines


def load(name: str) -> Any:
    """Import a module that lies beside this file. In cria's own tree the control client lies elsewhere."""
    import importlib

    here = os.path.dirname(os.path.realpath(__file__))
    if here not in sys.path:
        sys.path.append(here)
    if name == CONTROL_CLIENT and not os.path.exists(f"{here}/{name}.py"):
        sys.path.append(f"{here}/../../engine/control")
        name = "client"
    return importlib.import_module(name)


def log(text: str) -> None:
    """Write a line for CRIU's log."""
    print(f"cria: {text}", file=sys.stderr)


def resume_later(criu: int | None, engines: list[ControlClient]) -> None:
    """Leave a process behind that resumes the engines when CRIU, a pidfd, has ended.

    At post-dump an engine cannot be resumed: CRIU has stopped it still, containerd keeps it frozen for longer, and
    after a dump that failed CRIU does not call the script at all. The process outlives this script, because CRIU
    waits for the script and the engine for CRIU. While the engine is frozen, the request waits in its socket.
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
            engine.resume(FROZEN_SECONDS)
        except Exception:  # noqa: BLE001 - the engine has ended with its dump, or its lease has
            continue
    os._exit(0)


# The cgroup freezer ----------------------------------------------------------------------------


class Thawed:
    """Let a frozen cgroup run for a moment: containerd freezes a container before it calls CRIU.

    A frozen engine cannot be quiesced. It is frozen again before CRIU looks at it; a cgroup that was not frozen is
    left alone. Raises TimeoutError where the cgroup does not freeze again.
    """

    def __init__(self, pid: int) -> None:
        self._file, self._frozen, self._running = find_freezer(pid)
        self._was_frozen = self._file is not None and is_frozen(self._file)

    def __enter__(self) -> None:
        if self._file and self._was_frozen:
            write(self._file, self._running)

    def __exit__(self, *_error: object) -> None:
        if not (self._file and self._was_frozen):
            return
        deadline = time.monotonic() + FREEZE_SECONDS
        write(self._file, self._frozen)
        while not is_frozen(self._file):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self._file} does not freeze again")
            time.sleep(0.001)
            write(self._file, self._frozen)  # cgroup v1 can stay FREEZING until it is asked again


def find_freezer(pid: int) -> tuple[str | None, str, str]:
    """Return the file that freezes the cgroup of `pid`, and what to write to it to freeze and to thaw."""
    with open(f"/proc/{pid}/cgroup") as file:
        paths = dict(line.rstrip("\n").split(":", 2)[1:] for line in file)
    version_1 = next((path for names, path in paths.items() if "freezer" in names.split(",")), None)
    with open("/proc/self/mountinfo") as file:
        mounts = [line.split() for line in file]
    for fields in mounts:
        file_system = fields[fields.index("-") + 1]
        if file_system == "cgroup" and version_1 and "freezer" in fields[-1].split(","):
            return f"{fields[4]}{version_1}/freezer.state", "FROZEN", "THAWED"
        if file_system == "cgroup2" and not version_1 and "" in paths:
            return f"{fields[4]}{paths['']}/cgroup.freeze", "1", "0"
    return None, "", ""


def is_frozen(file: str) -> bool:
    """Return whether all tasks of the cgroup are frozen: freezer.state says so in v1, cgroup.events in v2."""
    version_2 = file.endswith("cgroup.freeze")
    try:
        with open(file.replace("cgroup.freeze", "cgroup.events")) as state:
            return ("frozen 1" if version_2 else "FROZEN") in state.read()
    except FileNotFoundError:
        return False  # the root cgroup cannot be frozen


def write(path: str, text: str) -> None:
    """Write `text` to the file at `path`."""
    with open(path, "w") as file:
        file.write(text)


if __name__ == "__main__":
    sys.exit(main())
