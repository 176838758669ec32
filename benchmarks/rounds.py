"""One round: a cold start, then CRIU alone and each mode of cria in turn, each from the same state."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from shutil import rmtree

from benchmarks import cria_commands, engine
from benchmarks.client import Client
from benchmarks.cria_commands import Result
from benchmarks.engine import StartedEngine
from benchmarks.modes import PLAIN, Mode
from benchmarks.raw import RawImages
from cria.engine.http_api import model_name
from cria.errors import CriaError
from cria.events import Timings

RAW = "CRIU alone"
Say = Callable[[str], None]
Values = defaultdict[str, list[float]]


def _values() -> Values:
    return defaultdict(list)


@dataclass(kw_only=True)
class Measurements:
    """What all rounds measured: for each way the values of each figure, and the timings of its commands."""

    cold: list[float] = field(default_factory=list)
    figures: dict[str, Values] = field(default_factory=lambda: defaultdict(_values))
    dumps: dict[str, list[Timings]] = field(default_factory=lambda: defaultdict(list))
    restores: dict[str, list[Timings]] = field(default_factory=lambda: defaultdict(list))
    clones: dict[str, Values] = field(default_factory=lambda: defaultdict(_values))
    troubles: list[str] = field(default_factory=list)

    def add(self, way: str, **figures: float | None) -> None:
        for name, value in figures.items():
            if value is not None:
                self.figures[way][name].append(value)


@dataclass(kw_only=True)
class Round:
    """One engine, from its cold start to its end.

    The engine always comes back from the images of CRIU alone, so that each dump finds the same state.
    """

    command: Sequence[str]
    environment: Mapping[str, str]
    directory: Path
    criu: Path
    modes: Sequence[Mode]
    clone_modes: Sequence[Mode]
    clones: int
    measurements: Measurements
    say: Say
    engine: StartedEngine = field(init=False)
    raw: RawImages = field(init=False)

    def run(self, number: int) -> None:
        """Measure everything once. The mode that comes first depends on the round's `number`."""
        self.directory.mkdir()
        with ExitStack() as stack:
            stack.callback(rmtree, self.directory, ignore_errors=True)
            self.say("cold start")
            self.engine = engine.start(
                self.command, self.environment, self.directory / "engine.log"
            )
            stack.callback(engine.kill, self.engine.pid)
            self.measurements.cold.append(self.engine.first_token_seconds)
            self._dump_raw()
            dump_options = list(dict.fromkeys(mode.dump for mode in self.modes))
            first = number % len(dump_options)
            for options in (*dump_options[first:], *dump_options[:first]):
                self._measure([mode for mode in self.modes if mode.dump == options])

    def _dump_raw(self) -> None:
        """Dump the engine with CRIU alone: first for the pause that a client sees, then to its end."""
        self.say(f"{RAW}: dump")
        images = RawImages(self.criu, self.directory / "raw-with-client")
        _flush_disk()
        with self._client(RAW) as client:
            images.dump(self.engine.pid, leave_running=True)
        rmtree(images.directory)
        self.raw = RawImages(self.criu, self.directory / "raw")
        _flush_disk()
        seconds = self.raw.dump(self.engine.pid)
        self.measurements.add(RAW, pause=client.pause, dump=seconds, bytes=self.raw.bytes)

    def _measure(self, modes: Sequence[Mode]) -> None:
        """Measure modes with the same options of dump: dump twice, then restore in each mode."""
        mode, checkpoint = modes[0], self.directory / "checkpoint"
        with self._restored_raw():
            self.say(f"{mode.name}: dump with a client")
            _flush_disk()
            with self._client(mode.name) as client:
                cria_commands.dump(self.engine.pid, checkpoint, ["--leave-running", *mode.dump])
            self.measurements.add(mode.name, pause=client.pause)
        rmtree(checkpoint)
        with self._restored_raw():
            self.say(f"{mode.name}: dump")
            _flush_disk()
            result = cria_commands.dump(self.engine.pid, checkpoint, mode.dump)
            engine.reap()
            self.measurements.add(mode.name, bytes=result.bytes, dump=result.seconds)
            if result.timings is not None:
                self.measurements.dumps[mode.name].append(result.timings)
        for restore_mode in modes:
            self._try(restore_mode, self._restore, checkpoint)
        if mode is PLAIN:
            for clone_mode in self.clone_modes:
                self._try(clone_mode, self._restore_clones, checkpoint)
        rmtree(checkpoint)

    @contextmanager
    def _restored_raw(self) -> Iterator[None]:
        """Restore the engine with CRIU alone, as it was after its cold start; kill it at the end."""
        self.say(f"{RAW}: restore")
        start = time.monotonic()
        seconds = self.raw.restore()
        try:
            first_token = engine.first_token(self.engine.url) - start
            self.measurements.add(RAW, restore=seconds, first_token=first_token)
            engine.check_tokens(self.engine.url, self.engine.generation)
            yield
        finally:
            engine.kill(self.engine.pid)

    def _try(self, mode: Mode, measure: Callable[[Mode, Path], None], checkpoint: Path) -> None:
        """Report a mode that fails and go on; without the plain mode there is nothing to compare."""
        try:
            measure(mode, checkpoint)
        except CriaError as error:
            if mode is PLAIN:
                raise
            self.measurements.troubles.append(f"{mode.name}: {error.message}: {error.details}")

    def _restore(self, mode: Mode, checkpoint: Path) -> None:
        if mode.ready is not None:
            self.say(f"{mode.name}: prepare the checkpoint")
            prepared = cria_commands.prepare(checkpoint, mode.ready)
            self.measurements.add(mode.name, ready=prepared.seconds)
        self.say(f"{mode.name}: restore")
        result = cria_commands.restore(checkpoint, mode.restore)
        try:
            (restored,) = result.engines
            first_token = engine.first_token(restored.url) - result.start
            self.measurements.add(mode.name, restore=result.seconds, first_token=first_token)
            if result.timings is not None:
                self.measurements.restores[mode.name].append(result.timings)
            engine.check_tokens(restored.url, self.engine.generation)
        finally:
            _kill_engines(result)

    def _restore_clones(self, mode: Mode, checkpoint: Path) -> None:
        """Restore one clone, then several at once: the seconds until all are healthy, and their memory."""
        for name, count in (("one", 1), ("all", self.clones)):
            self.say(f"{mode.name}: {count} clone(s) at once")
            options = ["--replicas", str(count), "--ports", "auto", *mode.restore]
            result = cria_commands.restore(checkpoint, options)
            try:
                for clone in result.engines:
                    engine.check_tokens(clone.url, self.engine.generation)
                memory_bytes = engine.pss_bytes(clone.pid for clone in result.engines)
                self.measurements.clones[mode.name][name].append(result.seconds)
                self.measurements.clones[mode.name][f"{name}_bytes"].append(memory_bytes)
            finally:
                _kill_engines(result)

    @contextmanager
    def _client(self, way: str) -> Iterator[Client]:
        with Client(self.engine.url, model_name(self.engine.url)) as client:
            yield client
        if client.pause is None:
            reason = client.trouble or "too short"
            self.measurements.troubles.append(f"{way}: no pause measured, {reason}")


def _flush_disk() -> None:
    """Write what others left in the page cache, so that no dump waits for it."""
    os.sync()


def _kill_engines(result: Result) -> None:
    for restored in result.engines:
        engine.kill(restored.pid)
