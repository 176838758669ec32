"""Bring an engine to a still point before its dump, and let it go on."""

from __future__ import annotations

from typing import Any

import msgspec

from cria.engine import health
from cria.engine.control import client
from cria.engine.control.client import Control
from cria.errors import QuiesceFailed, Unhealthy
from cria.events import Listener, Warned, nobody
from cria.model.inventory import Inventory
from cria.model.manifest import Inflight, Quiesced, Weights

RESUME_SECONDS = 10.0
_END_IT = "a process of it has ended: end the rest, cria stop PID, and start it again"
LEASE_MARGIN_SECONDS = 30.0
LONGEST_LEASE_SECONDS = 600.0  # the part inside grants no more


class StillPoint:
    """One engine on its way to a still point and back.

    `quiesced` is what was reached; `why_not` the reason where nothing was. `stores` are the files by
    which the workers found each other, None where they did not tell.
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
        self._tell = listener or nobody
        self._control: Control | None = None
        self._ours = False
        self.quiesced: Quiesced | None = None
        self.why_not: str | None = None
        self.stores: tuple[str, ...] | None = None

    def pause(self) -> None:
        """No request is computed and every cache is empty when this returns.

        Raises QuiesceFailed; the engine was then told to go on.
        """
        if self._inflight is None:
            self.why_not = "not wanted: --no-quiesce"
            return
        self._control = client.find(self._inventory)
        if self._control is not None:
            answer = self._ask(self._control, "pause", inflight=self._inflight)
            self._ours = bool(answer["by_cria"])
            return
        self.why_not = "cria is not inside this engine"
        if self._inventory.is_engine:
            words = f"{self.why_not}: it is dumped as it stands, with its KV cache"
            self._tell(Warned(message=words, remedy="start it with: cria run -- vllm serve ..."))

    def hold(self, seconds: float) -> None:
        """Stand still for `seconds` and a little more, if cria is not heard of: longer than the lease it has.

        Raises QuiesceFailed.
        """
        if self._control is not None and self._ours:
            lease = min(seconds + LEASE_MARGIN_SECONDS, LONGEST_LEASE_SECONDS)
            self._ask(self._control, "renew", lease=lease)

    def drop(self) -> int | None:
        """Let every worker meet the others and give its KV cache back to the kernel; returns bytes.

        Raises QuiesceFailed.
        """
        if self._control is None or self._inflight is None:
            return None
        answer = self._ask(self._control, "quiesce")
        known = {"control": self._control.path, "inflight": self._inflight}
        try:
            self.quiesced = msgspec.convert(answer | known, Quiesced)
            self.stores = msgspec.convert(answer.get("stores"), tuple[str, ...] | None)
        except msgspec.ValidationError as error:
            raise QuiesceFailed(
                "the engine answered something that cria does not understand", details=str(error)
            ) from error
        return self.quiesced.dropped_bytes

    def sleep(self, weights: Weights, *, lease: float) -> None:
        """Let vLLM free what it can make again on its GPUs, and stand still for `lease` seconds more.

        An engine that somebody else had paused, or put to sleep, stays as it is. Only warns where it
        was started without sleep mode. Raises QuiesceFailed.
        """
        if self._control is None or self.quiesced is None or not self._ours:
            return
        slept = self._ask(self._control, "sleep", weights=weights)["weights"]
        self.quiesced = msgspec.structs.replace(self.quiesced, weights=slept)
        self.hold(lease)
        if slept is None:
            words = "the engine cannot sleep: its whole KV cache goes into the checkpoint"
            self._tell(Warned(message=words, remedy="start it with: --enable-sleep-mode"))

    def resume(self) -> None:
        """Let requests be computed again, those that waited first.

        Only warns when the engine does not hear: it goes on by itself when its lease ends.
        """
        if self._control is None:
            return
        asleep = self.quiesced is not None and self.quiesced.weights is not None
        try:
            self._control.ask("resume", seconds=self._seconds if asleep else RESUME_SECONDS)
        except QuiesceFailed as error:
            words = f"{error.message}; it goes on by itself within a minute"
            self._tell(Warned(message=words, remedy=error.details))

    def _ask(self, asked: Control, command: str, **words: str | float) -> dict[str, Any]:
        try:
            return asked.ask(command, seconds=self._seconds, **words)
        except QuiesceFailed as error:
            # One that is stopped or gone is why the others wait.
            remedy = _END_IT if health.has_ended(self._inventory, within=0.3) else None
            said = [error.details or "", *health.states(self._inventory)]
            details = "\n".join(line for line in said if line)
            raise QuiesceFailed(error.message, details=details, remedy=remedy) from error


def resume_restored(root: int, quiesced: Quiesced, *, seconds: float) -> None:
    """Let an engine go on that was dumped at a still point and wakes up in it. Raises Unhealthy."""
    try:
        Control(pid=root, path=quiesced.control).ask("resume", seconds=seconds)
    except QuiesceFailed as error:
        raise Unhealthy(
            "the restored engine does not go on from its still point", details=error.details
        ) from error
