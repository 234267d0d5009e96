"""Connections: how many may be open, and how long each has for what it is to do next.

uvicorn closes a connection that is idle after an answer. One that never sends a whole request, or never reads its
answer, it leaves open for ever.
"""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

from uvicorn.protocols.http.h11_impl import H11Protocol

from pixelbert.serve.guard import LINGER, RETRY_AFTER, error
from pixelbert.serve.limits import Limits

SOCKETS = 2  # open for each request that may be under way: what tells of the server's health is still answered


class Connection(H11Protocol):
    """One connection, which is cut off when it is late.

    It is awaited for the head of a request (its headers), from its opening or the last answer on, and then for the end
    of the answer, which the guard gives in time: that takes longer only if nobody reads it.
    """

    limits: ClassVar[Limits] = Limits()
    _awaited: Any = None  # the request that is under way
    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait(self.limits.head_seconds)
        if len(self.connections) > SOCKETS * self.limits.connections:
            transport.write(full())
            transport.close()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._late is not None:
            self._late.cancel()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """Begin the time for what is awaited now, if that is something new."""
        under_way = None if self.cycle is None or self.cycle.response_complete else self.cycle
        if under_way is not self._awaited:
            self._awaited = under_way
            self._wait(self.limits.head_seconds if under_way is None else self.limits.seconds + 2 * LINGER)

    def _wait(self, seconds: float) -> None:
        if self._late is not None:
            self._late.cancel()
        self._late = self.loop.call_later(seconds, self.transport.abort)


def full() -> bytes:
    """What a connection too many is told."""
    body = bytes(error(503, "too many connections at one time: try again in a moment").body)
    head = (
        f"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        f"Retry-After: {RETRY_AFTER}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body
