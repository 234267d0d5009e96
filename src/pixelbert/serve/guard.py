"""What stands before the app: who may ask, how much, for how long; and what every answer carries."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import math
import re
import time
from collections.abc import Mapping
from contextlib import suppress

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pixelbert.serve.limits import Limits
from pixelbert.serve.metrics import Metrics

LINGER = 2.0  # seconds for which what a refused client still sends is read and thrown away
RETRY_AFTER = 2  # seconds
LONGEST_ERROR = 1000  # characters: an error may quote what was sent
ANY_ADDRESS = "any IP address"  # among the hosts of a guard
UNFORESEEN = "something went wrong in the server; its log says what"
SECURITY: Mapping[str, str] = {
    # blob: is how the page shows the photo that was chosen, before and without sending it
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
log = logging.getLogger("pixelbert.serve")


def error(status: int, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The one form of all errors."""
    if len(message) > LONGEST_ERROR:
        message = message[:LONGEST_ERROR] + " ..."
    if status == 503:
        headers = {"Retry-After": str(RETRY_AFTER), **(headers or {})}
    return JSONResponse({"error": message}, status, dict(headers or {}))


class Guard:
    """Wraps the whole app, so that whatever happens in it ends in an answer, in JSON and without a traceback.

    Args:
        hosts: names in the Host header that are answered, and `ANY_ADDRESS` if addresses are; all if None. Otherwise a
            web page could have its own name resolve to this server's address and read the answers (DNS rebinding).
        endpoints: paths that are counted by name.
    """

    def __init__(
        self, app: ASGIApp, limits: Limits, metrics: Metrics, endpoints: frozenset[str], hosts: frozenset[str] | None
    ) -> None:
        self.app, self.limits, self.metrics, self.endpoints, self.hosts = app, limits, metrics, endpoints, hosts
        self.open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        start, status, size = time.perf_counter(), 0, 0
        unread = "transfer-encoding" in headers or headers.get("content-length", "0") != "0"

        async def limited() -> Message:
            nonlocal size, unread
            message = await receive()
            unread = message.get("more_body", False)
            size += len(message.get("body", b""))
            if size > self.limits.upload:
                raise HTTPException(413, self._too_large())
            return message

        async def secured(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                # Who is refused while still sending should see why, which a connection that is closed with bytes unread
                # does not show. But not for ever; and who waits for a sign to go on (curl does) has sent nothing yet.
                waits = size == 0 and headers.get("expect", "").lower() == "100-continue"
                if unread and (waits or not await sent_to_the_end(receive)):
                    message["headers"] = [*message["headers"], (b"connection", b"close")]
                own = {name for name, _ in message["headers"]}
                extra = [(name.lower().encode(), value.encode()) for name, value in SECURITY.items()]
                message["headers"] = [*message["headers"], *(header for header in extra if header[0] not in own)]
            await send(message)

        self.open += 1
        try:
            async with asyncio.timeout(self.limits.seconds):
                await (self._refusal(scope, headers) or self.app)(scope, limited, secured)
        except TimeoutError:
            if not status:
                late = "the request did not arrive" if unread else "the model did not get to it"
                refused = error(
                    408 if unread else 504, f"{late} within {self.limits.seconds:g} seconds: try again later"
                )
                await refused(scope, receive, secured)
        except Exception:
            log.exception("%s %s failed", scope["method"], scope["path"])
            if not status:
                await error(500, UNFORESEEN)(scope, receive, secured)
        finally:
            self.open -= 1
            endpoint = scope["path"] if scope["path"] in self.endpoints else "other"
            self.metrics.answered(endpoint, status or 499, time.perf_counter() - start)

    def _refusal(self, scope: Scope, headers: Headers) -> ASGIApp | None:
        """What to answer without asking the app, if so."""
        if self.hosts is not None and not is_answered(host_of(headers.get("host", "")), self.hosts):
            return error(
                400,
                "this server does not answer to that name: open the address that it printed when it started, or start "
                "it with --hosts and the name",
            )
        if not scope["path"].startswith("/api/"):
            return None
        if is_foreign(headers):
            return error(403, "another web site may not ask this server: open its own page")
        if self.open > self.limits.connections:
            return error(503, "too many requests at one time: try again in a moment")
        if scope["method"] == "POST":
            if content_length(headers) > self.limits.upload:
                return error(413, self._too_large())
            if not headers.get("content-type", "").lower().startswith("multipart/form-data"):
                return error(415, "send the photo and the texts as multipart/form-data, as a form with a file does")
        return None

    def _too_large(self) -> str:
        return f"the request is larger than {self.limits.upload_mb:g} MB: send a smaller photo"


def host_of(header: str) -> str:
    """The name in a Host header, without its port: of `[::1]:8000`, `[::1]`. Empty if it is malformed."""
    match = re.fullmatch(r"(\[[^\]]*\]|[^:]*)(:\d*)?", header)
    return match[1].lower() if match else ""


def is_answered(host: str, hosts: frozenset[str]) -> bool:
    """Whether a name of a Host header, or an address, is among these hosts."""
    return host in hosts or (ANY_ADDRESS in hosts and is_address(host))


def is_address(host: str) -> bool:
    """Whether it is an IP address, which no web page can have as its own name."""
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True


def is_foreign(headers: Headers) -> bool:
    """Whether a page of another web site asks. Browsers say so in Sec-Fetch-Site; where they don't send that (old ones,
    and over plain HTTP from another machine), Origin names the page's site. Programs that are no browser send neither.
    """
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site not in ("same-origin", "none")
    origin = headers.get("origin")  # of a page without a site, "null"
    return origin is not None and origin.lower().partition("://")[2] != headers.get("host", "").lower()


def content_length(headers: Headers) -> float:
    """What the client says it sends; nothing if it does not say."""
    try:
        return int(headers.get("content-length", "0"))
    except ValueError:
        return math.inf


async def sent_to_the_end(receive: Receive) -> bool:
    """Whether the rest of a request, which is thrown away, ends within a while."""
    with suppress(TimeoutError):
        async with asyncio.timeout(LINGER):
            while (await receive()).get("more_body", False):
                pass
            return True
    return False
