"""Signals that ask a run to end: it saves first.

They often go to more processes than the one that trains: Ctrl-C, `timeout`, torchrun and service managers send them to
a whole process group, cluster schedulers to every process of a job, and some of them twice. So processes that load data
take no notice of them, and end with the run.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

# Of a person (Ctrl-C), of whoever shuts a machine down, of cluster schedulers before the time of a job is over, of a
# terminal that closes.
ASKING = tuple(getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, n))
AGAIN = 1.0  # seconds after which another signal is another request: `timeout` sends each to process and group


class StopRequest:
    """While this is open, the first such signal is noted, and a second one, a second or more later, ends the process as
    it would have otherwise.

    Attributes:
        signal: the number of the signal that came; 0 before.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._came = 0.0
        self._process = os.getpid()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # no other may set handlers
            self._before = {n: signal.signal(n, self._note) for n in ASKING if not left_to_nohup(n)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a process that was forked, and has not come to `ignore_requests` yet
            return
        if not self.signal:
            self.signal, self._came = number, time.monotonic()
        elif time.monotonic() - self._came >= AGAIN:
            signal.signal(number, self._before[number])
            signal.raise_signal(number)


def left_to_nohup(number: int) -> bool:
    """Whether this is the signal of a terminal that closes, and the process was started so as to outlive it."""
    return number == getattr(signal, "SIGHUP", None) and signal.getsignal(number) == signal.SIG_IGN


@contextmanager
def requests_held() -> Iterator[None]:
    """What is started here gets none of these signals until it calls `ignore_requests`; this process, afterwards."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows, which has no such signals
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ASKING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_requests(_: int = 0) -> None:
    """For a process that loads data (torch calls this with its number): let the one that trains decide."""
    for number in ASKING:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ASKING)
