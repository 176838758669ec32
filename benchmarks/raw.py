"""CRIU alone, as someone uses it who knows it: the same program, no cria, the engine as it stands."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from benchmarks import subject
from cria.checkpoint import layout, saved_files
from cria.criu import log
from cria.criu.client import CriuRefused
from cria.engine.inventory.collect import collect_inventory
from cria.errors import CriaError, DumpFailed, RestoreFailed
from cria.model.manifest import CarriedFile
from cria.system import processes

OPTIONS = ("--tcp-established", "--ext-unix-sk", "--file-locks", "--link-remap")
SECONDS = 300.0
TRIES = 5  # a PID may be in use for a moment


class RawImages:
    """Images that CRIU made, and what has to be put back before they can be restored again."""

    def __init__(self, criu: Path, place: Path) -> None:
        self._criu = criu
        self.place = place
        self._carried: tuple[CarriedFile, ...] = ()
        self._stored = place.with_name(f"{place.name}-carried")

    @property
    def bytes(self) -> int:
        return layout.size_bytes(self.place)

    def dump(self, root: int, *, leave_running: bool = False) -> float:
        """Run `criu dump`; returns seconds. Raises DumpFailed."""
        self.place.mkdir(mode=layout.PRIVATE)
        words = ["dump", "--tree", str(root)] + (["--leave-running"] if leave_running else [])
        inventory = collect_inventory(root, any_process=True)
        seconds = self._run(words, "dump.log", DumpFailed)
        if not leave_running:
            # Not part of what is measured: CRIU uses these files up, so that one dump is one restore.
            self._stored.mkdir(mode=layout.PRIVATE)
            processes.wait_for_exit(inventory.processes)
            subject.reap()
            shared = (Path(file.path) for file in inventory.shared_files if file.path)
            remaps = Path("/dev/shm").glob(f"{saved_files.LINK_REMAP}*")
            wanted = dict.fromkeys(path for path in (*shared, *remaps) if path.exists())
            self._carried = saved_files.store(wanted, self._stored)
        return seconds

    def restore(self) -> float:
        """Run `criu restore`, after what it needs was put back; returns its seconds. Raises RestoreFailed."""
        for left in reversed(range(TRIES)):
            saved_files.put_back(self._carried, self._stored)
            try:
                return self._run(["restore", "--restore-detached"], "restore.log", RestoreFailed)
            except CriaError:
                if not left:
                    raise
                time.sleep(1)
        raise AssertionError("there is a last try")

    def _run(
        self, words: list[str], log_name: str, during: type[DumpFailed | RestoreFailed]
    ) -> float:
        place = ["--images-dir", str(self.place), "--log-file", log_name]
        begin = time.monotonic()
        with log.explained(self.place / log_name, during=during):
            done = subprocess.run(
                [self._criu, *words, *place, *OPTIONS],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=SECONDS,
                check=False,
            )
            seconds = time.monotonic() - begin
            if done.returncode != 0:
                raise CriuRefused(words[0], 0, f"criu ended with status {done.returncode}")
        return seconds
