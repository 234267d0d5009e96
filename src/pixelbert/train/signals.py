"""Signals that ask a run to end: it saves first."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

# Of a person (Ctrl-C), of whoever shuts a machine down, of cluster schedulers before the time of a job is over.
ASKING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))


class StopRequest:
    """While this is open, the first such signal is noted, and a second ends the process as it would have otherwise.

    Attributes:
        signal: the number of the signal that came; 0 before.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._process = os.getpid()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # no other may set handlers
            self._before = {number: signal.signal(number, self._note) for number in ASKING}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a process that loads data: it ends with the one that trains
            return
        if self.signal:
            signal.signal(number, self._before[number])
            signal.raise_signal(number)
        self.signal = number
