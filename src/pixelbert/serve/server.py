"""`pixelbert serve`: from a checkpoint to a web server."""

from __future__ import annotations

import ipaddress
import re
import signal
import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated

from pixelbert.bounds import Bound, bounded
from pixelbert.device import Precision
from pixelbert.errors import PixelBertError
from pixelbert.loading import SHIPPED, checkpoint_fingerprint
from pixelbert.predict.pixelbert import PixelBert
from pixelbert.predict.search import SearchIndex

LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})
STOPPING = 10  # seconds that requests have left to end in when the server is told to stop


@bounded
def serve(
    checkpoint: str = SHIPPED,
    index: Path | None = None,
    host: str = "127.0.0.1",
    port: Annotated[int, Bound(ge=0, le=65535)] = 8000,
    device: str | None = None,
    precision: Precision | None = None,
    upload_mb: Annotated[float, Bound(gt=0, le=1000)] = 20,
    waiting: Annotated[int, Bound(ge=1, le=10_000)] = 64,
    seconds: Annotated[float, Bound(gt=0, le=3600)] = 60,
    hosts: str | list[str] | None = None,
) -> None:
    """Serve a trained model as a web page and an HTTP API, until Ctrl-C or SIGTERM.

    Args:
        checkpoint: folder of a trained model (DIR/final of a run), or a hub name; the model that ships with the project
            if left out.
        index: folder that `pixelbert index` wrote, for searching photos.
        host: address to listen on. Whoever reaches another than the default may use the model: there are no accounts.
            It is then asked by an address, by this machine's name, or by a name given as one of `hosts`.
        port: 0 for any that is free.
        device: cuda, mps or cpu; the best there is by default.
        precision: bf16 or fp32; by default the faster on this device, which is measured.
        upload_mb: megabytes that one request may have.
        waiting: requests that may wait for the model; those that come then are asked to come back.
        seconds: that a request may take.
        hosts: a further name by which it is asked, or a list of them: of a proxy before it, or one that a network gives
            this machine. Requests by other names are refused.
    """
    try:
        import uvicorn

        from pixelbert.serve.app import abilities, create_app
        from pixelbert.serve.connections import Connection
        from pixelbert.serve.limits import Limits
    except ModuleNotFoundError as error:
        raise PixelBertError(f"serving needs {error.name}: pip install 'pixelbert[serve]'") from error
    names = answered(host, [hosts] if isinstance(hosts, str) else hosts or [])
    limits = Limits(upload_mb=upload_mb, waiting=waiting, seconds=seconds)
    with listening(host, port) as listener:  # before the model is loaded: a port in use is told at once
        model = PixelBert.from_pretrained(checkpoint, device, precision)
        opened = None if index is None else opened_index(model, index)
        shown = f"[{host}]" if ":" in host else host
        local = is_loopback(host)
        app = create_app(model, name_of(checkpoint), limits, opened, names)
        address = f"http://{shown}:{listener.getsockname()[1]}"
        print(
            f"{name_of(checkpoint)} ({', '.join(abilities(model, opened))}) is at {address}  (Ctrl-C stops it)",
            flush=True,
        )
        if not local:
            print("Anyone who can reach this machine may use it: there are no accounts.", flush=True)
        config = uvicorn.Config(
            app,
            http=type("Connection", (Connection,), {"limits": limits}),
            log_level="warning",
            access_log=False,
            server_header=False,
            lifespan="on",
            ws="none",
            timeout_graceful_shutdown=STOPPING,
        )
        # uvicorn stops at either signal and then raises it again: for SIGTERM that would be a death, not an end.
        previous = signal.signal(signal.SIGTERM, lambda *_: None)
        try:
            with suppress(KeyboardInterrupt):
                uvicorn.Server(config).run(sockets=[listener])
        finally:
            signal.signal(signal.SIGTERM, previous)
        print("stopped", flush=True)


def opened_index(model: PixelBert, folder: Path) -> SearchIndex:
    """The index, if this model can search it.

    Raises:
        PixelBertError: it can't, or there is no index.
    """
    index = SearchIndex.open(folder)
    if index.fingerprint != checkpoint_fingerprint(model.source):
        raise PixelBertError(
            f"{folder} was made with another checkpoint, {index.checkpoint}: serve that one, or no index"
        )
    index.must_have_photos()
    return index


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens there.

    Raises:
        PixelBertError: the port is in use, or there is no such address.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=512)  # type: ignore[arg-type]
    except OSError as error:
        raise PixelBertError(
            f"cannot listen at {host} port {port} ({error.strerror or error}): try another --port"
        ) from error


def answered(host: str, more: Sequence[str]) -> frozenset[str]:
    """The names by which a server that listens there is asked, as `Guard` takes them. Off loopback, any address is one.

    Raises:
        PixelBertError: one of `more` is no name.
    """
    from pixelbert.serve.guard import ANY_ADDRESS, host_of

    for name in more:
        if not re.fullmatch(r"[\w.-]+|\[[0-9a-f:.]+\]", name.lower()):
            raise PixelBertError(f"--hosts {name!r} is no name: expected one such as models.example, without http://")
    names = LOOPBACK | {host_of(f"[{host}]" if ":" in host else host), *(name.lower() for name in more)}
    if is_loopback(host):
        return names
    own = socket.gethostname().lower()
    return names | {own, f"{own.partition('.')[0]}.local", ANY_ADDRESS}


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches that address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def name_of(checkpoint: str) -> str:
    """What to call a checkpoint in public, which should not learn its path: of runs/mine/final, mine."""
    parts = [part for part in Path(checkpoint).absolute().parts if part != "final"]
    return parts[-1] if Path(checkpoint).exists() else checkpoint
