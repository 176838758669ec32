"""CRIU alone, as an experienced user runs it: the same program, without cria, on the engine as it stands."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import engine
from cria.checkpoint import layout, saved_files
from cria.criu import log
from cria.criu.client import CriuRefused
from cria.engine.inventory.collect import collect_inventory
from cria.errors import CriaError, DumpFailed, RestoreFailed
from cria.model.manifest import SavedFile
from cria.system import processes

OPTIONS = ("--tcp-established", "--ext-unix-sk", "--file-locks", "--link-remap")
TIMEOUT_SECONDS = 300.0
TRIES = 5  # a PID may be taken for a moment


class RawImages:
    """The images of one `criu dump`, and the files that must be put back before each `criu restore`."""

    def __init__(self, criu: Path, directory: Path) -> None:
        self._criu = criu
        self.directory = directory
        self._saved: tuple[SavedFile, ...] = ()
        self._saved_in = directory.with_name(f"{directory.name}-saved-files")

    @property
    def bytes(self) -> int:
        return layout.size_bytes(self.directory)

    def dump(self, root: int, *, leave_running: bool = False) -> float:
        """Run `criu dump` and return its seconds. Raises DumpFailed."""
        self.directory.mkdir(mode=layout.PRIVATE)
        inventory = collect_inventory(root, any_process=True)
        options = ["--leave-running"] if leave_running else []
        seconds = self._run("dump", ["--tree", str(root), *options], DumpFailed)
        if not leave_running:
            # Not measured: a restore uses these files up, so that a dump could be restored only once.
            self._saved_in.mkdir(mode=layout.PRIVATE)
            processes.wait_for_exit(inventory.processes)
            engine.reap()
            shared = (Path(file.path) for file in inventory.shared_files if file.path)
            remaps = Path("/dev/shm").glob(f"{saved_files.LINK_REMAP}*")
            paths = dict.fromkeys(path for path in (*shared, *remaps) if path.exists())
            originals = saved_files.save(paths, self._saved_in)
            self._saved = tuple(original.file for original in originals)
        return seconds

    def restore(self) -> float:
        """Put the saved files back, run `criu restore` and return its seconds. Raises RestoreFailed."""
        for tries_left in reversed(range(TRIES)):
            saved_files.put_back(self._saved, self._saved_in)
            try:
                return self._run("restore", ["--restore-detached"], RestoreFailed)
            except CriaError:
                if not tries_left:
                    raise
                time.sleep(1)
        raise AssertionError("the last try returns or raises")

    def _run(
        self, verb: str, options: Sequence[str], error: type[DumpFailed | RestoreFailed]
    ) -> float:
        log_name = f"{verb}.log"
        command = [
            str(self._criu),
            verb,
            *options,
            *("--images-dir", str(self.directory), "--log-file", log_name),
            *OPTIONS,
        ]
        start = time.monotonic()
        with log.explain_failure(self.directory / log_name, during=error):
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=TIMEOUT_SECONDS,
                check=False,
            )
            seconds = time.monotonic() - start
            if done.returncode != 0:
                raise CriuRefused(verb, 0, f"criu ended with status {done.returncode}")
        return seconds
