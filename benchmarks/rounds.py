"""One round: a cold start, then every way by turns with the same engine, each from the same state."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from shutil import rmtree

from benchmarks import commands, subject
from benchmarks.client import Client
from benchmarks.commands import Done
from benchmarks.memory import pss_bytes
from benchmarks.modes import PLAIN, Mode
from benchmarks.raw import RawImages
from benchmarks.subject import Started
from cria.engine.http_api import model_name
from cria.errors import CriaError
from cria.events import Timings

RAW = "CRIU alone"
Say = Callable[[str], None]
Values = defaultdict[str, list[float]]


def _values() -> Values:
    return defaultdict(list)


@dataclass(kw_only=True)
class Log:
    """What all rounds have measured: per way a list of values for each figure, and the steps of its runs."""

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

    def keep(self, runs: list[Timings], done: Done) -> None:
        if done.timings is not None:
            runs.append(done.timings)


@dataclass(kw_only=True)
class Round:
    """One engine, from its cold start to its end."""

    command: Sequence[str]
    environment: Mapping[str, str]
    place: Path
    criu: Path
    modes: Sequence[Mode]
    fleets: Sequence[Mode]
    clones: int
    log: Log
    say: Say
    engine: Started = field(init=False)
    raw: RawImages = field(init=False)
    _own: ExitStack = field(default_factory=ExitStack)

    def run(self, turn: int) -> None:
        """`turn` is the round's number: who goes first changes from round to round."""
        self.place.mkdir()
        with self._own:
            self._own.callback(rmtree, self.place, ignore_errors=True)
            self._start()
            self._dump_raw()
            kinds = list(dict.fromkeys(mode.dump for mode in self.modes))
            first = turn % len(kinds)
            for kind in (*kinds[first:], *kinds[:first]):
                self._measure([mode for mode in self.modes if mode.dump == kind])

    def _start(self) -> None:
        self.say("cold start")
        self.engine = subject.start(self.command, self.environment, self.place / "engine.log")
        self._own.callback(subject.end, self.engine.pid)
        self.log.cold.append(self.engine.first_token_seconds)

    def _dump_raw(self) -> None:
        """First while it lives on, seen by a client; then to its end."""
        self.say(f"{RAW}: dump")
        seen = RawImages(self.criu, self.place / "raw-seen")
        _settle()
        with self._client(RAW) as client:
            seen.dump(self.engine.pid, leave_running=True)
        rmtree(seen.place)
        self.raw = RawImages(self.criu, self.place / "raw")
        _settle()
        seconds = self.raw.dump(self.engine.pid)
        self.log.add(RAW, pause=client.pause, dump=seconds, bytes=self.raw.bytes)

    def _measure(self, modes: Sequence[Mode]) -> None:
        """Modes with the same dump: dumped twice, once seen by a client, and restored in each of them."""
        mode, checkpoint = modes[0], self.place / "checkpoint"
        with self._restored_raw():
            self.say(f"{mode.name}: dump, seen by a client")
            _settle()
            with self._client(mode.name) as client:
                words = ["--leave-running", *mode.dump]
                commands.dump(self.engine.pid, checkpoint, words)
            self.log.add(mode.name, pause=client.pause)
        rmtree(checkpoint)
        with self._restored_raw():
            self.say(f"{mode.name}: dump")
            _settle()
            dumped = commands.dump(self.engine.pid, checkpoint, mode.dump)
            subject.reap()
            self.log.add(mode.name, bytes=dumped.bytes, dump=dumped.seconds)
            self.log.keep(self.log.dumps[mode.name], dumped)
        for each in modes:
            self._try(each, self._restore, checkpoint)
        for each in self.fleets if mode is PLAIN else ():
            self._try(each, self._clone, checkpoint)
        rmtree(checkpoint)

    @contextmanager
    def _restored_raw(self) -> Iterator[None]:
        """The engine as it was after its cold start."""
        self.say(f"{RAW}: restore")
        begin = time.monotonic()
        seconds = self.raw.restore()
        try:
            first_token = subject.first_token(self.engine.url) - begin
            self.log.add(RAW, restore=seconds, first_token=first_token)
            subject.compare(self.engine.url, self.engine.generation)
            yield
        finally:
            subject.end(self.engine.pid)

    def _try(self, mode: Mode, measure: Callable[[Mode, Path], None], checkpoint: Path) -> None:
        """A mode that fails here is told of; without the plain one nothing can be compared."""
        try:
            measure(mode, checkpoint)
        except CriaError as error:
            if mode is PLAIN:
                raise
            self.log.troubles.append(f"{mode.name}: {error.message}: {error.details}")

    def _restore(self, mode: Mode, checkpoint: Path) -> None:
        if mode.ready is not None:
            self.say(f"{mode.name}: make the checkpoint ready")
            ready = commands.make_ready(checkpoint, mode.ready)
            self.log.add(mode.name, ready=ready.seconds)
        self.say(f"{mode.name}: restore")
        done = commands.restore(checkpoint, mode.restore)
        try:
            (engine,) = done.engines
            seconds = subject.first_token(engine.url) - done.begin
            self.log.add(mode.name, restore=done.seconds, first_token=seconds)
            self.log.keep(self.log.restores[mode.name], done)
            subject.compare(engine.url, self.engine.generation)
        finally:
            _end(done)

    def _clone(self, mode: Mode, checkpoint: Path) -> None:
        """One clone beside nobody, then all at once: how long until all are healthy, and their memory."""
        for name, count in (("one", 1), ("all", self.clones)):
            self.say(f"{mode.name}: {count} clone(s) at once")
            words = ["--replicas", str(count), "--ports", "auto", *mode.restore]
            done = commands.restore(checkpoint, words)
            try:
                for engine in done.engines:
                    subject.compare(engine.url, self.engine.generation)
                memory = pss_bytes(engine.pid for engine in done.engines)
                self.log.clones[mode.name][name].append(done.seconds)
                self.log.clones[mode.name][f"{name}_bytes"].append(memory)
            finally:
                _end(done)

    @contextmanager
    def _client(self, way: str) -> Iterator[Client]:
        with Client(self.engine.url, model_name(self.engine.url)) as client:
            yield client
        if client.pause is None:
            self.log.troubles.append(f"{way}: no pause measured, {client.trouble or 'too short'}")


def _settle() -> None:
    """Nobody's dump is held up by what another left for the disk to write."""
    os.sync()


def _end(done: Done) -> None:
    for engine in done.engines:
        subject.end(engine.pid)
