"""Quiesce an engine before its dump, and resume it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from cria.engine import health
from cria.engine.control.client import ControlClient, ControlFailed
from cria.engine.control.lookup import find_client
from cria.errors import QuiesceFailed, Unhealthy
from cria.events import Listener, Warned, nobody
from cria.model.inventory import Inventory
from cria.model.manifest import Inflight, Quiesced, Weights

RESUME_SECONDS = 10.0
LEASE_MARGIN_SECONDS = 30.0
LONGEST_LEASE_SECONDS = 600.0  # cria's agent grants no more
_END_REMEDY = (
    "a process of the engine has ended: end the rest with cria stop PID, and start it again"
)


class QuiesceSession:
    """Pauses one engine for a dump, and resumes it.

    `quiesced` is what was reached, None where nothing was, and `why_not` says why. `stores` are the files by
    which the workers found each other, None where cria's agent does not report them.
    """

    def __init__(
        self,
        inventory: Inventory,
        inflight: Inflight | None,
        *,
        seconds: float,
        listener: Listener | None = None,
    ) -> None:
        self._inventory = inventory
        self._inflight = inflight
        self._seconds = seconds
        self._notify = listener or nobody
        self._client: ControlClient | None = None
        self._paused_by_cria = False
        self.quiesced: Quiesced | None = None
        self.why_not: str | None = None
        self.stores: tuple[str, ...] | None = None

    def pause(self) -> None:
        """Stop the scheduler and empty every cache of it.

        Raises QuiesceFailed; then the engine was told to go on.
        """
        if self._inflight is None:
            self.why_not = "not wanted: --no-quiesce"
            return
        client = self._client = find_client(self._inventory)
        if client is not None:
            with self._explained():
                self._paused_by_cria = client.pause(self._inflight, self._seconds)
            return
        self.why_not = "cria is not inside this engine"
        if self._inventory.is_engine:
            message = f"{self.why_not}: the engine is dumped as it is, with its KV cache"
            self._notify(
                Warned(message=message, remedy="start it with: cria run -- vllm serve ...")
            )

    def extend_lease(self, seconds: float) -> None:
        """Let the engine stay paused for `seconds` and a margin from now on. Raises QuiesceFailed.

        An engine that cria has paused goes on by itself when its lease ends.
        """
        client = self._client
        if client is not None and self._paused_by_cria:
            lease = min(seconds + LEASE_MARGIN_SECONDS, LONGEST_LEASE_SECONDS)
            with self._explained():
                client.extend_lease(lease, self._seconds)

    def drop_caches(self) -> int | None:
        """Let all workers reach a barrier and give their KV caches back to the kernel. Raises QuiesceFailed.

        Returns the bytes that were given back; None where the engine is not quiesced.
        """
        client = self._client
        if client is None or self._inflight is None:
            return None
        with self._explained():
            report = client.drop_caches(self._seconds)
        settings = {"control": client.path, "inflight": self._inflight}
        try:
            self.quiesced = msgspec.convert(report | settings, Quiesced)
            self.stores = msgspec.convert(report.get("stores"), tuple[str, ...] | None)
        except msgspec.ValidationError as error:
            raise QuiesceFailed(
                "the engine gave an answer that cria does not understand", details=str(error)
            ) from error
        return self.quiesced.dropped_bytes

    def sleep(self, weights: Weights, *, lease: float) -> None:
        """Let vLLM free what it can build again on its GPUs, and stay paused for `lease` seconds more.

        An engine that somebody else had paused, or put to sleep, stays as it is. Only warns where the engine
        was started without sleep mode. Raises QuiesceFailed.
        """
        client = self._client
        if client is None or self.quiesced is None or not self._paused_by_cria:
            return
        with self._explained():
            where = client.sleep(weights, self._seconds)
        self.quiesced = msgspec.structs.replace(self.quiesced, weights=where)
        self.extend_lease(lease)
        if self.quiesced.weights is None:
            message = "the engine cannot sleep: its whole KV cache goes into the checkpoint"
            self._notify(Warned(message=message, remedy="start it with: --enable-sleep-mode"))

    def resume(self) -> None:
        """Let the engine compute again, first the requests that waited.

        Only warns when the engine does not answer: it goes on by itself when its lease ends.
        """
        if self._client is None:
            return
        asleep = self.quiesced is not None and self.quiesced.weights is not None
        try:
            self._client.resume(self._seconds if asleep else RESUME_SECONDS)
        except ControlFailed as failed:
            message = f"{failed.message}; it goes on by itself within a minute"
            self._notify(Warned(message=message, remedy=failed.details))

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Raise QuiesceFailed for a request that failed, with the state of each process of the engine.

        A process that is stopped or has ended is why the others wait.
        """
        try:
            yield
        except ControlFailed as failed:
            remedy = _END_REMEDY if health.has_ended(self._inventory, within=0.3) else None
            lines = [failed.details, *health.process_states(self._inventory)]
            details = "\n".join(line for line in lines if line)
            raise QuiesceFailed(failed.message, details=details, remedy=remedy) from failed


def resume_restored(root: int, quiesced: Quiesced, *, seconds: float) -> None:
    """Resume an engine that was quiesced for its dump and is restored so. Raises Unhealthy."""
    try:
        ControlClient(root, quiesced.control).resume(seconds)
    except ControlFailed as failed:
        raise Unhealthy(
            "the restored engine does not resume: it is still quiesced", details=failed.details
        ) from failed
