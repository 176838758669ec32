"""End when told to, but not in the middle of a node's dump: containerd would leave the container frozen."""

from __future__ import annotations

import signal
import threading
from typing import Any

import click

from cria.events import Event, Listener, StepFailed, StepFinished, StepStarted
from cria.kubernetes.checkpoint import DUMPING


class Ending:
    """Hears SIGINT and SIGTERM, and by `listen` of the dumps that are under way.

    The first signal sets `stop` while there are any: they are waited for, and no other begins. Without
    any, and at the second signal, it interrupts; engines that stand still are then told to go on.
    """

    def __init__(self) -> None:
        self.stop = threading.Event()
        self._dumping = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Ending:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._heard)
        return self

    def __exit__(self, *_error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def listen(self, listener: Listener) -> Listener:
        lock = threading.Lock()

        def tell(event: Event) -> None:
            match event:
                case StepStarted(step=step) if step.endswith(DUMPING):
                    change = 1
                case StepFinished(step=step) | StepFailed(step=step) if step.endswith(DUMPING):
                    change = -1
                case _:
                    change = 0
            with lock:
                self._dumping += change
            listener(event)

        return tell

    def _heard(self, _number: int, _frame: Any) -> None:
        if self.stop.is_set() or not self._dumping:
            raise KeyboardInterrupt
        self.stop.set()
        words = "a node is dumping and is waited for; once more, and its container may stay frozen"
        click.echo(words, err=True)
