"""The web app: answers equal to `PixelBert`'s in any company, limits that hold, a server that goes on serving."""

from __future__ import annotations

import asyncio
import http.client
import io
import json
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL.Image
import pytest
import uvicorn
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from pixelbert import (
    PixelBert,
    PixelBertError,
    PixelBertForImageAndTextRetrieval,
    PixelBertForImagesAndTextClassification,
    PixelBertForPreTraining,
    PixelBertForQuestionAnswering,
    PixelBertProcessor,
    cli,
)
from pixelbert.data.images import ImageError
from pixelbert.data.processing import PixelBertImageProcessor, learn_tokenizer
from pixelbert.predict.search import Found, index_photos
from pixelbert.serve import guard as guard_module
from pixelbert.serve import server
from pixelbert.serve.app import STATIC, create_app
from pixelbert.serve.batching import BusyError, ModelThread
from pixelbert.serve.limits import Limits
from pixelbert.serve.metrics import Metrics

TEXTS = ["a dog", "two dogs and a cat on a red beach", "a cat", "dogs on a beach by the red sea"]
API = "/api/v1"
Make = Callable[..., PixelBert]
Visit = Callable[..., TestClient]


@pytest.fixture(scope="module")
def processor() -> PixelBertProcessor:
    tokenizer = learn_tokenizer(["a dog and a cat on the red beach by the sea", "two dogs"], 80)
    return PixelBertProcessor(PixelBertImageProcessor(128, 192), tokenizer, max_length=20)


@pytest.fixture(scope="module")
def network(tiny_model: Callable[..., Any], processor: PixelBertProcessor) -> Callable[..., Any]:
    return partial(tiny_model, vocab_size=len(processor.tokenizer))


@pytest.fixture(scope="module")
def make(network: Callable[..., Any], processor: PixelBertProcessor) -> Make:
    return lambda *kind, **changes: PixelBert(network(*kind, **changes), processor)


@pytest.fixture(scope="module")
def photos() -> list[bytes]:
    """Of three shapes, so of three grids."""
    rng = np.random.default_rng(0)
    files = []
    for width, height in [(140, 140), (200, 130), (130, 200), (140, 140)]:
        buffer = io.BytesIO()
        PIL.Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(buffer, "PNG")
        files.append(buffer.getvalue())
    return files


@pytest.fixture
def visit() -> Iterator[Visit]:
    """A client of an app over a model."""
    clients: list[TestClient] = []

    def made(model: PixelBert, index: Any = None, hosts: frozenset[str] | None = None, **limits: Any) -> TestClient:
        client = TestClient(create_app(model, "mine", Limits(**limits), index, hosts), base_url="http://127.0.0.1")
        clients.append(client.__enter__())
        return client

    yield made
    for client in clients:
        client.__exit__(None, None, None)


class Held:
    """A model thread that is busy until it is let go, so that requests meet in its queue."""

    def __init__(self, model: PixelBert, monkeypatch: pytest.MonkeyPatch) -> None:
        self.free, self.begun = threading.Event(), threading.Event()
        attend = model.attend

        def slow(*arguments: Any) -> Any:
            self.begun.set()
            assert self.free.wait(10)
            return attend(*arguments)

        monkeypatch.setattr(model, "attend", slow)


def gauge(text: str, name: str, **labels: str) -> float:
    """A value of Prometheus' text."""
    samples = [s for family in text_string_to_metric_families(text) for s in family.samples if s.name == name]
    return sum(s.value for s in samples if labels.items() <= s.labels.items())


class TestAnswers:
    """What each checkpoint can do, in the shapes that the commands print, equal to `PixelBert` alone."""

    @pytest.mark.parametrize("kind", [PixelBertForPreTraining, PixelBertForImageAndTextRetrieval])
    def test_match(self, make: Make, visit: Visit, photos: list[bytes], kind: type) -> None:
        found = visit(make(kind)).post(f"{API}/match", files={"image": photos[1]}, data={"text": TEXTS}).json()
        expected = make(kind).match(photos[1], TEXTS)[0]
        scored = [{"text": t, "score": pytest.approx(s, abs=1e-5)} for t, s in zip(TEXTS, expected, strict=True)]
        assert found["scores"] == scored
        assert np.ptp(expected) > 1e-3

    def test_answer(self, make: Make, visit: Visit, photos: list[bytes]) -> None:
        answers = dict(enumerate(["yes", "no", "red", "two"]))
        model = make(PixelBertForQuestionAnswering, id2label=answers, label2id={})
        client = visit(model)
        data = {"question": "what is red", "top": 3}
        found = client.post(f"{API}/answer", files={"image": photos[0]}, data=data).json()
        expected = model.answer(photos[0], "what is red", 3)
        scored = [{"answer": a.answer, "score": pytest.approx(a.score, abs=1e-5)} for a in expected]
        assert found["answers"] == scored
        assert client.get(f"{API}/info").json()["can"] == ["answer", "attend"]
        beside = make(PixelBertForPreTraining)  # a pre-trained model that has such heads beside its own
        beside.answering = model.model
        expected, client = beside.answer(photos[0], "what is red", 3), visit(beside)
        found = client.post(f"{API}/answer", files={"image": photos[0]}, data=data).json()["answers"]
        assert [answer["answer"] for answer in found] == [a.answer for a in expected]
        assert client.get(f"{API}/info").json()["can"] == ["match", "answer", "fill-mask", "attend"]

    def test_fill_mask(self, make: Make, visit: Visit, photos: list[bytes]) -> None:
        model, text = make(), "a [MASK] on the [MASK]"
        found = visit(model).post(f"{API}/fill-mask", files={"image": photos[0]}, data={"text": text, "top": 2}).json()
        expected = [[f._asdict() | {"score": pytest.approx(f.score, abs=1e-5)} for f in fills] for fills in
                    model.fill_mask(photos[0], text, 2)]  # fmt: skip
        assert found == {"masks": expected, "cut": [], "unknown": []}

    def test_reason(self, make: Make, visit: Visit, photos: list[bytes]) -> None:
        model = make(PixelBertForImagesAndTextClassification)
        client = visit(model)
        for left, right in ((0, 1), (1, 0)):  # which the model tells apart
            files = {"left": photos[left], "right": photos[right]}
            found = client.post(f"{API}/reason", files=files, data={"statement": "two dogs"}).json()
            expected = model.reason(photos[left], photos[right], "two dogs")
            score = pytest.approx(expected.score, abs=1e-5)
            assert found == {"true": expected.true, "score": score, "cut": [], "unknown": []}
        assert client.get(f"{API}/info").json()["can"] == ["reason", "attend"]

    def test_attend(self, make: Make, visit: Visit, photos: list[bytes]) -> None:
        model = make()
        client = visit(model)
        for options in ({}, {"token": "dog", "layer": 1, "head": 2}, {"rollout": True}):
            data = {"text": "a dog on the beach", **options}
            found = client.post(f"{API}/attend", files={"image": photos[1]}, data=data).json()["words"]
            expected = model.attend(photos[1], "a dog on the beach", **options)  # type: ignore[arg-type]
            assert [word["word"] for word in found] == [word.word for word in expected]
            for word, one in zip(found, expected, strict=True):
                np.testing.assert_allclose(word["map"], one.map, atol=1e-5)
                assert word["share"] == pytest.approx(one.share, abs=1e-5)

    def test_what_is_not_read_of_a_sentence(self, make: Make, visit: Visit, photos: list[bytes]) -> None:
        client, long = visit(make()), 60 * "a dog "
        cut = [{"text": long, "tokens": 120, "read": make().processor.max_length - 2}]
        unknown = [{"text": "a ☃", "words": ["☃"], "tokens": 2, "unknown": 1}]
        files = {"image": photos[0]}
        for data, of in (
            ({"text": ["a dog", long, "a ☃"]}, {"cut": cut, "unknown": unknown}),
            ({"text": ["a dog"]}, {"cut": [], "unknown": []}),
        ):
            found = client.post(f"{API}/match", files=files, data=data).json()
            assert {name: found[name] for name in ("cut", "unknown")} == of
        found = client.post(f"{API}/attend", files=files, data={"text": long}).json()
        assert (found["cut"], found["unknown"]) == (cut, [])

    def test_only_what_the_checkpoint_can_do(self, make: Make, visit: Visit, photos: list[bytes]) -> None:
        client = visit(make(PixelBertForImageAndTextRetrieval))
        assert client.get(f"{API}/info").json()["can"] == ["match", "attend"]
        assert set(client.get(f"{API}/openapi.json").json()["paths"]) == {
            f"{API}/{x}" for x in ("match", "attend", "info")
        }
        for task in ("answer", "fill-mask", "reason", "search"):
            refused = client.post(f"{API}/{task}", files={"image": photos[0]}, data={"text": "x"})
            assert refused.status_code == 404
            assert f"fine-tuned for retrieval; here it can match, attend, not {task}" in refused.json()["error"]


class TestBatching:
    def test_match_each_is_match(self, make: Make, photos: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
        model = make()
        asked = [(photos[i % 4], TEXTS[: i % 5]) for i in range(11)]  # some with no text, more than go at once
        found = model.match_each(asked)
        assert [len(scores) for scores in found] == [len(texts) for _, texts in asked]
        for (photo, texts), scores in zip(asked, found, strict=True):
            np.testing.assert_allclose(scores, make().match(photo, texts)[0], atol=1e-5)
        assert model.match_each([]) == []

    def test_requests_that_wait_together_are_computed_together(
        self, make: Make, photos: list[bytes], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model, metrics = make(), Metrics()
        held, passes = Held(model, monkeypatch), []
        encode, run = model.model.encode_images, model._run
        monkeypatch.setattr(model.model, "encode_images", lambda x: passes.append("cnn") or encode(x))
        monkeypatch.setattr(model, "_run", lambda *a, **k: passes.append("transformer") or run(*a, **k))
        worker = ModelThread(model, 64, metrics)

        async def ask() -> list[Any]:
            first = asyncio.ensure_future(worker.run(lambda: model.attend(photos[0], "a dog"), [photos[0]]))
            await asyncio.to_thread(held.begun.wait, 10)
            passes.clear()
            asked = [worker.match(photos[1 + i % 3], TEXTS[i:]) for i in range(3)]
            together = asyncio.gather(*asked, worker.run(lambda: model.fill_mask(photos[2], "a [MASK]")))
            while len(worker._queue) < 4:
                await asyncio.sleep(0.001)
            held.free.set()
            await first
            return await together

        *scores, fills = asyncio.run(ask())
        worker.close()
        for i, found in enumerate(scores):
            np.testing.assert_allclose(found[0], make().match(photos[1 + i % 3], TEXTS[i:])[0], atol=1e-5)
        assert fills[0][0].token == make().fill_mask(photos[2], "a [MASK]")[0][0].token
        # The attention that was held; the CNN and the transformer once for three photos; the masked word.
        assert passes == ["transformer", "cnn", "transformer", "transformer"]
        assert gauge(metrics.text().decode(), "pixelbert_images_encoded_total") == 4

    def test_a_bad_photo_harms_its_own_request_alone(
        self, make: Make, photos: list[bytes], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = make()
        held = Held(model, monkeypatch)
        worker = ModelThread(model, 64, Metrics())

        async def ask() -> list[Any]:
            first = asyncio.ensure_future(worker.run(lambda: model.attend(photos[0], "a dog")))
            await asyncio.to_thread(held.begun.wait, 10)
            together = asyncio.gather(
                *(worker.match(photo, TEXTS) for photo in (photos[1], photos[1][:2000], photos[2])),
                worker.run(lambda: 1 / 0),
                return_exceptions=True,
            )
            while len(worker._queue) < 4:
                await asyncio.sleep(0.001)
            held.free.set()
            await first
            return await together

        good, bad, fine, broken = asyncio.run(ask())
        worker.close()
        assert isinstance(bad, ImageError)
        assert isinstance(broken, ZeroDivisionError)
        np.testing.assert_allclose([good[0], fine[0]], make().match(photos[1:3], TEXTS), atol=1e-5)

    def test_a_full_queue_a_request_given_up_and_the_end(
        self, make: Make, photos: list[bytes], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = make()
        held, done = Held(model, monkeypatch), []
        worker = ModelThread(model, 2, Metrics())

        async def ask() -> list[Any]:
            first = asyncio.ensure_future(worker.run(lambda: model.attend(photos[0], "a dog")))
            await asyncio.to_thread(held.begun.wait, 10)
            waiting = [asyncio.ensure_future(worker.run(lambda i=i: done.append(i))) for i in range(2)]
            await asyncio.sleep(0.01)
            with pytest.raises(BusyError, match="2 requests wait"):
                await worker.run(lambda: done.append(2))
            waiting[0].cancel()
            await asyncio.sleep(0.01)
            held.free.set()
            await first
            return await asyncio.gather(*waiting, return_exceptions=True)

        asyncio.run(ask())
        assert done == [1]
        worker.close()
        with pytest.raises(BusyError, match="stopping"):
            asyncio.run(worker.match(photos[0], TEXTS))


def bomb(width: int, height: int) -> bytes:
    """A PNG of few bytes and many pixels."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(9999)))]
    packed = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + packed


class TestLimits:
    @pytest.fixture(scope="class")
    def client(self, make: Make) -> Iterator[TestClient]:
        with TestClient(create_app(make(), "mine", Limits(upload_mb=1)), base_url="http://127.0.0.1") as client:
            yield client

    @pytest.mark.parametrize(
        ("task", "files", "data", "status", "message"),
        [
            ("match", {}, {"text": "x"}, 415, "multipart/form-data"),
            ("match", {"other": b""}, {"text": "x"}, 422, "the field image is missing"),
            ("match", {"image": (None, "text")}, {"text": "x"}, 422, "image is not a file"),
            ("match", {"image": "PHOTO"}, {}, 422, "the field text is missing"),
            ("match", {"image": "PHOTO"}, {"text": " \t\n"}, 422, "the sentence is empty"),
            ("match", {"image": "PHOTO"}, {"text": ["a", ""]}, 422, "the sentence 2 is empty"),
            ("match", {"image": "PHOTO"}, {"text": "x" * 2001}, 422, "2,001 characters; at most 2,000"),
            ("match", {"image": "PHOTO"}, {"text": ["x"] * 101}, 422, "101 sentences at once; at most 100"),
            ("match", {"image": "PHOTO"}, {"text": ["x"] * 1500}, 400, "Too many fields"),
            ("match", {"image": b""}, {"text": "x"}, 422, "the photo is empty (0 bytes)"),
            ("match", {"image": ("a.jpg", b"GIF", "image/jpeg")}, {"text": "x"}, 422, "not an image of a known format"),
            ("match", {"image": b"<svg onload='x'/>"}, {"text": "x"}, 422, "web page or SVG"),
            ("match", {"image": "CUT"}, {"text": "x"}, 422, "damaged or cut short"),
            ("match", {"image": bomb(9000, 9000)}, {"text": "x"}, 413, "9000 x 9000; at most 50,000,000 pixels"),
            ("match", {"image": bomb(60000, 60000)}, {"text": "x"}, 422, "too many pixels"),
            ("match", {"image": bytes(1_100_000)}, {"text": "x"}, 413, "larger than 1 MB"),
            ("fill-mask", {"image": "PHOTO"}, {"text": "a dog"}, 422, "[MASK] is missing"),
            ("fill-mask", {"image": "PHOTO"}, {"text": "[MASK]", "top": "0"}, 422, "top"),
            ("fill-mask", {"image": "PHOTO"}, {"text": "[MASK]", "top": "9" * 5000}, 422, "top"),
            ("attend", {"image": "PHOTO"}, {"text": "a dog", "token": "cat"}, 422, "no word 'cat'"),
            ("attend", {"image": "PHOTO"}, {"text": "a dog", "layer": "2"}, 422, "no layer 2"),
            ("attend", {"image": "PHOTO"}, {"text": "a dog", "head": "two"}, 422, "head"),
            ("attend", {"image": "PHOTO"}, {"text": "a dog", "layer": "-1"}, 422, "the field layer"),
            ("attend", {"image": "PHOTO"}, {"text": "a dog", "head": "-1"}, 422, "the field head"),
            (
                "attend",
                {"image": "PHOTO"},
                {"text": "a dog", "token": "x" * 900_000},
                422,
                "word has 900,000 characters",
            ),
            ("attend", {"image": "PHOTO"}, {"text": "a dog", "token": "x" * 2000}, 422, "the text has no word"),
            ("nothing", {"image": "PHOTO"}, {}, 404, "nothing at this address"),
        ],
    )
    def test_refused_with_a_sentence(
        self,
        client: TestClient,
        photos: list[bytes],
        task: str,
        files: dict[str, Any],
        data: dict[str, Any],
        status: int,
        message: str,
    ) -> None:
        stand_for = {"PHOTO": photos[0], "CUT": photos[0][:3000]}
        files = {name: stand_for.get(file, file) if isinstance(file, str) else file for name, file in files.items()}
        refused = client.post(f"{API}/{task}", files=files, data=data)
        assert (refused.status_code, list(refused.json())) == (status, ["error"]), refused.text
        assert message in refused.json()["error"]
        assert len(refused.json()["error"]) < 1100
        assert not re.search(r"Traceback|\.py|/tmp|/home|/work", refused.text)
        assert refused.headers["x-content-type-options"] == "nosniff"
        again = client.post(f"{API}/match", files={"image": photos[0]}, data={"text": "a dog"})
        assert again.status_code == 200

    def test_broken_forms(self, client: TestClient, photos: list[bytes]) -> None:
        for kind, body in (
            ("multipart/form-data", b"x"),
            ("multipart/form-data; boundary=b", b"--b\r\nno header"),
            ("multipart/form-data; boundary=" + "b" * 500, b"\0" * 1000),
        ):
            refused = client.post(f"{API}/match", content=body, headers={"content-type": kind})
            assert refused.status_code in (400, 422)
            assert list(refused.json()) == ["error"]
        assert client.put(f"{API}/match").json()["error"].startswith("PUT is not for this address")

    def test_file_names_and_unknown_fields_are_nothing(self, client: TestClient, photos: list[bytes]) -> None:
        expected = client.post(f"{API}/match", files={"image": photos[0]}, data={"text": TEXTS}).json()
        for name in ("../../etc/passwd", "/etc/passwd\0.png", "C:\\x", "x" * 3000, "a\r\nb: c"):
            files = {"image": (name, photos[0], "text/html"), "more": ("x", b"y")}
            data = {"text": TEXTS, "__class__": "x", "checkpoint": "/etc"}
            assert client.post(f"{API}/match?debug=1", files=files, data=data).json() == expected

    def test_a_stream_without_end_is_cut_off(self, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(guard_module, "LINGER", 0.05)
        seen, sent = [], []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            while True:  # as a parser that keeps all it reads
                seen.append(len((await receive())["body"]))

        async def endless() -> dict[str, Any]:
            await asyncio.sleep(0)
            return {"type": "http.request", "body": bytes(1000), "more_body": True}

        async def send(message: Any) -> None:
            sent.append(message)

        guarded = guard_module.Guard(error_as_answer(app), Limits(upload_mb=0.1), Metrics(), frozenset(), None)
        scope = {"type": "http", "method": "POST", "path": f"{API}/match", "headers": FORM}
        asyncio.run(guarded(scope, endless, send))
        assert sum(seen) == 100_000
        assert sent[0]["status"] == 413

    def test_time(self, make: Make, visit: Visit, photos: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
        model = make()
        held = Held(model, monkeypatch)
        client = visit(model, seconds=0.3)
        late = client.post(f"{API}/attend", files={"image": photos[0]}, data={"text": "a dog"})
        assert (late.status_code, late.json()["error"][:50]) == (
            504,
            "the model did not get to it within 0.3 seconds: tr",
        )
        held.free.set()
        assert client.post(f"{API}/attend", files={"image": photos[0]}, data={"text": "a dog"}).status_code == 200

    def test_a_full_queue(self, make: Make, visit: Visit, photos: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
        model = make()
        held = Held(model, monkeypatch)
        client = visit(model, waiting=1)

        def ask(task: str) -> Any:
            return client.post(f"{API}/{task}", files={"image": photos[0]}, data={"text": "a dog"})

        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(ask, "attend")
            assert held.begun.wait(10)
            second = pool.submit(ask, "match")
            while not gauge(client.get("/metrics").text, "pixelbert_queue_depth"):
                pass
            refused = ask("match")
            held.free.set()
            assert (first.result().status_code, second.result().status_code) == (200, 200)
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) > 0
        assert "1 requests wait" in refused.json()["error"]

    def test_what_nobody_foresaw(
        self, make: Make, visit: Visit, photos: list[bytes], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = make()
        monkeypatch.setattr(model, "attend", lambda *_: {}["secret"])
        failed = visit(model).post(f"{API}/attend", files={"image": photos[0]}, data={"text": "a dog"})
        assert (failed.status_code, list(failed.json())) == (500, ["error"])
        assert "secret" not in failed.text
        assert "content-security-policy" in failed.headers

    def test_limits_that_are_none(self) -> None:
        with pytest.raises(PixelBertError, match="the limit waiting is 0"):
            Limits(waiting=0)


FORM = [(b"content-type", b"multipart/form-data; boundary=b"), (b"transfer-encoding", b"chunked")]


def error_as_answer(app: Any) -> Any:
    """As FastAPI does with an HTTPException."""

    async def wrapped(scope: Any, receive: Any, send: Any) -> None:
        try:
            await app(scope, receive, send)
        except guard_module.HTTPException as error:
            await guard_module.error(error.status_code, error.detail)(scope, receive, send)

    return wrapped


class TestGuard:
    def test_hosts(self, make: Make, visit: Visit) -> None:
        client = visit(make(), hosts=server.LOOPBACK)
        for host, status in (
            ("127.0.0.1", 200), ("127.0.0.1:8000", 200), ("localhost:1", 200), ("LOCALHOST", 200), ("[::1]:8000", 200),
            ("evil.example", 400), ("127.0.0.1.evil.example", 400), ("localhost@evil.example", 400), ("", 400),
            ("[::1].evil.example", 400),
        ):  # fmt: skip
            answer = client.get("/", headers={"host": host})
            assert answer.status_code == status, host
            if status == 400:
                assert "does not answer to that name" in answer.json()["error"]
        assert visit(make()).get("/", headers={"host": "mine.example"}).status_code == 200

    def test_other_sites_may_not_ask(self, make: Make, visit: Visit, photos: list[bytes]) -> None:
        client = visit(make())
        for site, status in (("same-origin", 200), ("none", 200), ("cross-site", 403), ("same-site", 403)):
            headers = {"sec-fetch-site": site, "origin": "http://evil.example"}
            answer = client.post(f"{API}/match", files={"image": photos[0]}, data={"text": "a dog"}, headers=headers)
            assert answer.status_code == status
            assert "access-control-allow-origin" not in answer.headers
            assert client.get("/", headers=headers).status_code == 200  # a link may lead here
        for origin, status in (  # of a browser that says no more
            ("http://127.0.0.1", 200), ("HTTP://127.0.0.1", 200), ("http://127.0.0.1:1", 403), ("null", 403), ("", 403),
            ("http://evil.example", 403), ("http://127.0.0.1.evil.example", 403), ("http://127.0.0.1@x.example", 403),
        ):  # fmt: skip
            headers = {"origin": origin}
            answer = client.post(f"{API}/match", files={"image": photos[0]}, data={"text": "a dog"}, headers=headers)
            assert answer.status_code == status, origin

    def test_names_off_loopback(self, make: Make, visit: Visit, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(server.socket, "gethostname", lambda: "Mine.lan.example")
        client = visit(make(), hosts=server.answered("0.0.0.0", ["Models.example"]))
        for host, status in (
            ("192.168.1.5:8000", 200), ("[fe80::1]:8000", 200), ("localhost:8000", 200), ("mine.lan.example", 200),
            ("mine.local:8000", 200), ("models.example", 200), ("evil.example", 400), ("192.168.1.5.evil.example", 400),
            ("", 400), ("mine.example", 400), ("any IP address", 400),
        ):  # fmt: skip
            assert client.get("/", headers={"host": host}).status_code == status, host
        assert server.answered("127.0.0.1", []) == server.LOOPBACK
        assert "models.example" in server.answered("127.0.0.1", ["models.example"])
        for name in ("http://models.example", "a/b", ""):
            with pytest.raises(PixelBertError, match="is no name"):
                server.answered("127.0.0.1", [name])

    def test_metrics(self, make: Make, visit: Visit, photos: list[bytes]) -> None:
        client = visit(make())
        for _ in range(3):
            client.post(f"{API}/match", files={"image": photos[0]}, data={"text": TEXTS})
        client.post(f"{API}/match", files={"image": b"x"}, data={"text": "x"})
        client.get("/strange/path")
        assert client.get("/healthz").json() == {"status": "ok"}
        answer = client.get("/metrics")
        assert answer.headers["content-type"].startswith("text/plain; version=")
        for name, labels, value in (
            ("pixelbert_requests_total", {"endpoint": f"{API}/match", "status": "200"}, 3),
            ("pixelbert_requests_total", {"endpoint": "other", "status": "404"}, 1),
            ("pixelbert_errors_total", {"endpoint": f"{API}/match"}, 1),
            ("pixelbert_request_seconds_count", {"endpoint": f"{API}/match"}, 4),
            ("pixelbert_images_encoded_total", {}, 1),
            ("pixelbert_queue_depth", {}, 0),
        ):
            assert gauge(answer.text, name, **labels) == value, name
        assert "strange" not in answer.text


class TestPage:
    def test_nothing_comes_from_elsewhere(self, make: Make, visit: Visit) -> None:
        client = visit(make())
        for path in ("/", "/docs"):
            page = client.get(path)
            assert page.headers["content-type"].startswith("text/html")
            policy = page.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert not re.search(r"<style|<script>|\sstyle=|\son\w+=", page.text)  # which the policy would block
            links = re.findall(r'(?:src|href)="([^"#]+)"', page.text)
            assert len(links) > 3
            for link in links:
                assert client.get(link).status_code == 200, link
        for file in STATIC.iterdir():
            elsewhere = re.sub(r"http://www\.w3\.org/2000/svg", "", file.read_text())
            assert not re.search(r"https?:|//\w+\.\w+|@import|url\(", elsewhere), file

    def test_examples(self, make: Make, visit: Visit) -> None:
        client = visit(make())
        for example in client.get(f"{API}/info").json()["examples"]:
            assert client.get(example["image"]).headers["content-type"] == "image/jpeg"
            assert Path(example["image"]).name in client.get("/attribution").text
        for path in ("/examples/../app.py", "/static/%2e%2e/app.py", "/static/..%2fapp.py", "/static//etc/passwd"):
            assert client.get(path).status_code == 404


class TestSearch:
    @pytest.fixture
    def folder(self, photos: list[bytes], tmp_path: Path) -> Path:
        (tmp_path / "photos").mkdir()
        for i in range(3):
            large = PIL.Image.open(io.BytesIO(photos[i])).resize((1400, 900))
            large.save(tmp_path / "photos" / f"{i}.jpg")
        return tmp_path / "photos"

    def test_photos_by_number(self, make: Make, visit: Visit, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        model, asked = make(), []
        files = [str(folder / f"{i}.jpg") for i in (2, 0, 1)]

        def search(index: Any, text: str, top: int) -> list[Any]:
            asked.append((index, text, top))
            return [Found(file, 0.5 - i / 10, changed=i == 1) for i, file in enumerate(files[:top])]

        monkeypatch.setattr(model, "search", search, raising=False)
        index = SimpleNamespace(left_out={7: "damaged"})
        client = visit(model, index=index)
        assert "search" in client.get(f"{API}/info").json()["can"]
        found = client.get(f"{API}/search", params={"text": "a dog", "top": 2})
        assert asked == [(index, "a dog", 2)]
        assert [one["score"] for one in found.json()["results"]] == [0.5, 0.4]
        assert [(one["changed"], one["missing"]) for one in found.json()["results"]] == [(False, False), (True, False)]
        assert found.json()["left_out"] == 1
        assert str(folder) not in found.text
        again = client.get(f"{API}/search", params={"text": "a cat"}).json()["results"]
        assert [one["image"] for one in again[:2]] == [one["image"] for one in found.json()["results"]]
        shown = client.get(again[1]["image"])
        assert shown.headers["content-type"] == "image/jpeg"
        with PIL.Image.open(io.BytesIO(shown.content)) as small, PIL.Image.open(files[1]) as large:
            assert small.size == (640, 411)
            difference = np.asarray(small, int) - np.asarray(large.resize(small.size), int)
            assert abs(difference).mean() < 12
        Path(files[0]).replace(files[1])  # another photo of the same name: not the one that was shown before
        assert client.get(again[1]["image"]).content != shown.content
        Path(files[2]).unlink()
        for path in (again[2]["image"], f"{API}/photos/3", f"{API}/photos/-1"):
            missing = client.get(path)
            assert (missing.status_code, list(missing.json())) == (404, ["error"])
            assert str(folder) not in missing.text
        assert client.get(f"{API}/photos/..%2f0.jpg").status_code in (404, 422)
        for empty in (" ", "\u200b"):
            assert client.get(f"{API}/search", params={"text": empty}).status_code == 422

    def test_a_search_that_fails(self, make: Make, visit: Visit, monkeypatch: pytest.MonkeyPatch) -> None:
        model = make()

        def search(*_: Any, **__: Any) -> None:
            raise PixelBertError("/home/me/index is damaged")

        monkeypatch.setattr(model, "search", search, raising=False)
        failed = visit(model, index="x").get(f"{API}/search", params={"text": "a dog"})
        assert failed.status_code == 500
        assert "/home" not in failed.text

    def test_the_index_must_be_this_checkpoints(
        self, network: Callable[..., Any], processor: PixelBertProcessor, folder: Path, tmp_path: Path
    ) -> None:
        models = []
        for name, kind in (("one", PixelBertForPreTraining), ("other", PixelBertForImageAndTextRetrieval)):
            processor.save_pretrained(tmp_path / name)
            network(kind).save_pretrained(tmp_path / name)
            models.append(PixelBert.from_pretrained(tmp_path / name, "cpu", "fp32"))
        index_photos(models[0], folder, tmp_path / "index")
        assert len(models[0].search(server.opened_index(models[0], tmp_path / "index"), "a dog")) == 3
        with pytest.raises(PixelBertError, match="made with another checkpoint"):
            server.opened_index(models[1], tmp_path / "index")


@pytest.fixture(scope="module")
def running(
    network: Callable[..., Any], processor: PixelBertProcessor, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The command itself, over loopback; and its port."""
    folder = tmp_path_factory.mktemp("runs") / "mine" / "final"
    network().save_pretrained(folder)
    processor.save_pretrained(folder)
    command = [sys.executable, "-m", "pixelbert", "serve", str(folder), "--port", "0"]
    options = ["--precision", "fp32", "--device", "cpu", "--upload-mb", "1"]
    process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    said = re.fullmatch(
        r"mine \(match, fill-mask, attend\) is at http://127\.0\.0\.1:(\d+)  \(Ctrl-C stops it\)\n", line
    )
    assert said, line
    yield process, int(said[1])
    process.kill()


def form(photo: bytes, *texts: str) -> tuple[bytes, dict[str, str]]:
    """A multipart body and its header, written by hand."""
    parts = [f'Content-Disposition: form-data; name="text"\r\n\r\n{text}'.encode() for text in texts]
    parts.append(b'Content-Disposition: form-data; name="image"; filename="x"\r\n\r\n' + photo)
    body = b"".join(b"--b\r\n" + part + b"\r\n" for part in parts) + b"--b--\r\n"
    return body, {"Content-Type": "multipart/form-data; boundary=b"}


def ask(port: int, photo: bytes, *texts: str) -> list[float]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    body, headers = form(photo, *texts)
    connection.request("POST", f"{API}/match", body, headers)
    answer = connection.getresponse()
    scores = json.loads(answer.read())["scores"]
    connection.close()
    assert [one["text"] for one in scores] == list(texts)
    return [one["score"] for one in scores]


def send_for(seconds: float, client: socket.socket, data: bytes) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        client.sendall(data)


class TestServer:
    """In this order: the last one stops the server."""

    def test_clients_side_by_side(self, running: Any, make: Make, photos: list[bytes]) -> None:
        model = make()
        asked = [(photos[i % 4], TEXTS[i % 3 :]) for i in range(24)]
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda one: ask(running[1], one[0], *one[1]), asked))
        for (photo, texts), scores in zip(asked, found, strict=True):
            np.testing.assert_allclose(scores, model.match(photo, texts)[0], atol=1e-5)

    def test_goes_on_after_hostile_clients(self, running: Any, make: Make, photos: list[bytes]) -> None:
        port = running[1]
        head = f"POST {API}/match HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=b\r\n"
        body, headers = form(bytes(20_000_000), "a dog")  # more than the sockets hold between the two
        for kind in ("declared", "chunked"):  # sent whole by a client that listens only afterwards
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            chunks = (body[i : i + 65536] for i in range(0, len(body), 65536))
            connection.request(
                "POST",
                f"{API}/match",
                body if kind == "declared" else chunks,
                headers,
                encode_chunked=kind == "chunked",
            )
            answer = connection.getresponse()
            assert (answer.status, list(json.loads(answer.read()))) == (413, ["error"]), kind
            connection.close()
        for text in (
            "\0\1\2 nonsense\r\n\r\n",
            head + "Content-Length: 999999\r\n\r\n--b\r\n",  # and then goes away
            head + "Content-Length: minus\r\n\r\n",
            head + "Transfer-Encoding: chunked\r\n\r\nZZZ\r\n",
            head + "X: " + "y" * 100_000,
            head + "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: x\r\n\r\n",
        ):
            with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
                client.sendall(text.encode())
        with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
            client.sendall((head + "Transfer-Encoding: chunked\r\n\r\n").encode())
            with pytest.raises(ConnectionError):  # the server has had enough
                send_for(20, client, b"10000\r\n" + bytes(0x10000) + b"\r\n")
        np.testing.assert_allclose(ask(port, photos[0], *TEXTS), make().match(photos[0], TEXTS)[0], atol=1e-5)

    def test_sigterm(self, running: Any, photos: list[bytes]) -> None:
        process, port = running
        with socket.create_connection(("127.0.0.1", port)):  # one that says nothing must not hold it up
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        assert process.stdout.read() == "stopped\n"
        assert "Traceback" not in process.stderr.read()


class TestCommand:
    def test_what_a_person_can_put_right(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = str(taken.getsockname()[1])
            for options, message in (
                (["--port", port], f"cannot listen at 127.0.0.1 port {port}"),
                (["--port", "99999"], "port is 99999; expected 0 to 65,535"),
                (["--port", "0"], "no Pixel-BERT checkpoint"),
                (["--port", "0", "--waiting", "0"], "waiting is 0"),
            ):
                with pytest.raises(SystemExit) as stop:
                    cli.main(["serve", "--checkpoint", str(tmp_path), *options])
                assert stop.value.code == 2
                assert message in capsys.readouterr().err
        monkeypatch.setitem(sys.modules, "uvicorn", None)
        with pytest.raises(PixelBertError, match=r"pip install 'pixelbert\[serve\]'"):
            server.serve(str(tmp_path))

    @pytest.mark.parametrize("answers", [True, False])
    def test_its_first_line_names_all_that_it_can_do(
        self, make: Make, answers: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = make()
        if answers:  # with heads beside its own, as the model that ships
            model.answering = make(PixelBertForQuestionAnswering, id2label={0: "yes", 1: "no"}, label2id={}).model
        monkeypatch.setattr(PixelBert, "from_pretrained", lambda *_: model)
        monkeypatch.setattr(uvicorn.Server, "run", lambda *_, **__: None)
        cli.main(["serve", "somebody/model", "--port", "0"])
        said = re.match(r"somebody/model \((.*)\) is at http", capsys.readouterr().out)
        assert said
        with TestClient(create_app(model, "mine"), base_url="http://127.0.0.1") as client:
            assert said[1].split(", ") == client.get(f"{API}/info").json()["can"]
        assert ("answer" in said[1]) == answers

    def test_names(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "runs" / "mine" / "final").mkdir(parents=True)
        monkeypatch.chdir(tmp_path / "runs")
        for name in ("mine/final", "mine/final/", "mine", str(tmp_path / "runs" / "mine" / "final")):
            assert server.name_of(name) == "mine"
        assert server.name_of("somebody/on-a-hub") == "somebody/on-a-hub"
        loopback = [server.is_loopback(host) for host in ("127.0.0.1", "127.0.0.2", "::1", "localhost", "0.0.0.0", "x")]
        assert loopback == [True, True, True, True, False, False]
