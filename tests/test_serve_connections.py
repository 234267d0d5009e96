"""The server against clients who hold it up: connections that say nothing, answers that nobody reads, huge photos."""

from __future__ import annotations

import asyncio
import http.client
import io
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageFile
import pytest
import uvicorn

from pixelbert import PixelBert, PixelBertProcessor
from pixelbert.data.images import stored_size
from pixelbert.data.processing import PixelBertImageProcessor, learn_tokenizer
from pixelbert.serve.app import create_app
from pixelbert.serve.batching import Job, ModelThread
from pixelbert.serve.connections import Connection
from pixelbert.serve.limits import Limits, PhotoFile
from pixelbert.serve.metrics import Metrics

HEAD = b"POST /api/v1/match HTTP/1.1\r\nHost: 127.0.0.1\r\n"
ASK = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


@pytest.fixture(scope="module")
def model(tiny_model: Callable[..., Any]) -> PixelBert:
    tokenizer = learn_tokenizer(["a dog on a beach"], 80)
    processor = PixelBertProcessor(PixelBertImageProcessor(64, 128), tokenizer, max_length=20)
    return PixelBert(tiny_model(vocab_size=len(tokenizer)), processor)


@contextmanager
def listening(app: Any, limits: Limits) -> Iterator[int]:
    """The app behind real sockets, on a port of loopback."""
    connection = type("Connection", (Connection,), {"limits": limits})
    config = uvicorn.Config(app, log_level="critical", lifespan="on", ws="none", http=connection)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield listener.getsockname()[1]
        server.should_exit = True
        thread.join(20)
    assert not thread.is_alive()


def ends_within(client: socket.socket, seconds: float) -> float:
    """The seconds until the other side has closed this connection."""
    client.settimeout(seconds)
    start = time.monotonic()
    with suppress(ConnectionError):
        while client.recv(65536):
            pass
    return time.monotonic() - start


def health(port: int) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    connection.request("GET", "/healthz")
    status = connection.getresponse().status
    connection.close()
    return status


def png(width: int, height: int, mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new(mode, (width, height), "red").save(buffer, "PNG")
    return buffer.getvalue()


class TestTime:
    @pytest.fixture(scope="class")
    def port(self, model: PixelBert) -> Iterator[int]:
        limits = Limits(head_seconds=0.5, seconds=2)
        with listening(create_app(model, "mine", limits), limits) as port:
            yield port

    @pytest.mark.parametrize("sent", [b"", HEAD + b"X: y", ASK + HEAD, ASK + ASK + b"G"])  # the last ones after answers
    def test_a_request_that_does_not_come(self, port: int, sent: bytes) -> None:
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(sent)
            assert 0.4 <= ends_within(client, 4) < 2

    def test_a_letter_at_a_time_does_not_gain_time(self, port: int) -> None:
        start = time.monotonic()
        with socket.create_connection(("127.0.0.1", port)) as client, suppress(ConnectionError):
            for i in range(400):
                client.sendall(HEAD[i % len(HEAD) :][:1])
                time.sleep(0.01)
        assert time.monotonic() - start < 3

    def test_a_body_that_does_not_come(self, port: int) -> None:
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(HEAD + b"Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 999\r\n\r\n--b")
            client.settimeout(8)
            assert client.recv(65536).startswith(b"HTTP/1.1 408")
            assert ends_within(client, 4) < 4

    def test_one_that_works_is_left_alone(self, port: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        for _ in range(6):  # longer together than the time for one
            connection.request("GET", "/healthz")
            answer = connection.getresponse()
            assert answer.read() == b'{"status":"ok"}'
            time.sleep(0.15)
        connection.close()

    def test_hundreds_that_say_nothing_are_closed_and_others_are_served(self, port: int) -> None:
        start = time.monotonic()
        with ExitStack() as clients:
            idle = [clients.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(400)]
            assert health(port) == 200
            for client in idle:
                ends_within(client, 5)
        assert time.monotonic() - start < 5

    def test_an_answer_that_nobody_reads(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async def send_on(send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            with suppress(TimeoutError):  # as the guard ends it
                async with asyncio.timeout(0.2):
                    while True:
                        await send({"type": "http.response.body", "body": bytes(100_000), "more_body": True})

        async def app(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http":
                return await send_on(send)
            for _ in range(2):
                await send({"type": (await receive())["type"] + ".complete"})
            return None

        opened: list[Connection] = []
        made = Connection.connection_made

        def recorded(connection: Connection, transport: Any) -> None:
            opened.append(connection)
            made(connection, transport)

        monkeypatch.setattr(Connection, "connection_made", recorded)
        limits = Limits(head_seconds=0.3, seconds=0.2)
        with listening(app, limits) as port, socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(ASK)
            end = time.monotonic() + 15
            while (not opened or opened[0] in opened[0].connections) and time.monotonic() < end:
                time.sleep(0.05)
            assert opened[0] not in opened[0].connections


def test_connections_beyond_the_cap_are_told(model: PixelBert) -> None:
    limits = Limits(connections=3, head_seconds=30)
    with listening(create_app(model, "mine", limits), limits) as port, ExitStack() as clients:
        for _ in range(6):
            clients.enter_context(socket.create_connection(("127.0.0.1", port)))
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.settimeout(5)
            told = client.recv(65536)
            assert told.startswith(b"HTTP/1.1 503")
            assert b"Retry-After: 2" in told
            assert told.endswith(b'{"error":"too many connections at one time: try again in a moment"}')
        clients.close()
        for _ in range(50):
            if health(port) == 200:
                return
            time.sleep(0.05)
        pytest.fail("the connections that were closed still count")


class TestPixels:
    @pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"])
    def test_a_photo_is_measured_without_being_decoded(self, format: str, monkeypatch: pytest.MonkeyPatch) -> None:
        buffer, decoded = io.BytesIO(), []
        PIL.Image.new("RGB", (300, 200)).save(buffer, format)
        load = PIL.ImageFile.ImageFile.load
        monkeypatch.setattr(PIL.ImageFile.ImageFile, "load", lambda image: decoded.append(1) or load(image))
        photo = Limits().photo(buffer.getvalue())
        assert decoded == []
        assert (photo, photo.pixels) == (buffer.getvalue(), 60_000)
        assert stored_size(buffer.getvalue()) == (300, 200)

    def test_jobs_are_taken_together_as_far_as_their_pixels_allow(self, model: PixelBert) -> None:
        worker = ModelThread(model, 64, Metrics(), pixels=100)
        worker.close()
        sizes = [60, 60, 30, 200, 10, 1]
        jobs = []
        for size in sizes:
            photo = PhotoFile(b"x")
            photo.pixels = size
            jobs.append(Job([photo]))
        worker._queue.extend(jobs)
        jobs[-1].future.cancel()
        taken = []
        while worker._queue:
            taken.append([job.pixels for job in worker._first_that_fit()])
        assert taken == [[60, 30, 10], [60], [200]]

    def test_scores_are_those_of_the_model(self, model: PixelBert) -> None:
        photo = Limits().photo(png(200, 130))
        worker = ModelThread(model, 64, Metrics(), pixels=100)
        scores, _ = asyncio.run(worker.match(photo, ["a dog", "a beach"]))
        worker.close()
        np.testing.assert_allclose(scores, model.match(png(200, 130), ["a dog", "a beach"])[0], atol=1e-6)
