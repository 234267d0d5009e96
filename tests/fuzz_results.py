"""Targets behind a model: predictions, evaluations to go on with, indexes of photos, requests to the web app."""

from __future__ import annotations

import io
import json
import logging
import sys
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any, ClassVar

import numpy as np
from starlette.testclient import TestClient

from data_builders import (
    encoded,
    nlvr2_rows,
    photo,
    vqa_data,
    write_photos,
)
from fuzz_models import saved
from fuzzing import Fault, Files, Target, as_json, as_lines, command, files_of
from pixelbert import (
    PixelBert,
)
from pixelbert.predict.search import SearchIndex, index_photos
from pixelbert.serve.app import create_app
from pixelbert.serve.limits import Limits
from pixelbert.tasks import predictions

RECIPES = Path(__file__).parents[1] / "recipes"


# --- Predictions, evaluations, indexes


class ScoreVqa(Target):
    inputs = 20

    def sound(self, draw: Random) -> Files:
        questions, annotations = vqa_data("val2014", [(7, 1, "yes"), (8, 2, "two")])
        answers = [{"question_id": 7, "answer": "yes"}, {"question_id": 8, "answer": "2"}]
        return {"q.json": as_json(questions), "a.json": as_json(annotations), "p.json": as_json(answers)}

    def read(self, folder: Path) -> None:
        files = zip(("--questions", "--annotations", "--predictions"), "qap", strict=True)
        given = [word for option, name in files for word in (option, str(folder / f"{name}.json"))]
        command(folder, "score", "vqa", *given, "--json", str(folder / "scores.json"))


class ScoreNlvr2(Target):
    inputs = 20

    def sound(self, draw: Random) -> Files:
        rows = nlvr2_rows("dev", 3)
        return {"dev.jsonl": as_lines(rows), "p.csv": "".join(f"{r['identifier']},True\n" for r in rows).encode()}

    def read(self, folder: Path) -> None:
        given = ("--data", str(folder / "dev.jsonl"), "--predictions", str(folder / "p.csv"))
        command(folder, "score", "nlvr2", *given, "--json", str(folder / "scores.json"))


class Pickled:
    """Ends the process when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return sys.exit, (7,)


def array(value: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, value, allow_pickle=True)
    return buffer.getvalue()


class ScoreRetrieval(Target):
    inputs = 30

    def sound(self, draw: Random) -> Files:
        scores = draw.choice((np.eye(4, 2, dtype=np.float32), np.eye(4, 2)))
        ids: list[Any] = draw.choice(([0, 1, 0, 1], ["a", "b", "a", "b"]))
        name = draw.choice((".json", ".npy", ".txt"))
        forms = {".json": as_json(ids), ".npy": array(np.array(ids)), ".txt": "\n".join(map(str, ids)).encode()}
        return {"s.npy": array(scores), f"ids{name}": forms[name]}

    def made(self, draw: Random) -> Files:
        return {"s.npy": array(np.array([[Pickled()] * 2] * 4)), "ids.npy": array(np.array([Pickled()] * 4))}

    def read(self, folder: Path) -> None:
        (ids,) = folder.glob("ids.*")
        given = ("--scores", str(folder / "s.npy"), "--image-ids", str(ids), "--folds", "2")
        command(folder, "score", "retrieval", *given, "--json", str(folder / "scores.json"))


class Evaluations(Target):
    """The folder of an evaluation that was stopped, which somebody goes on with."""

    inputs = 80
    IDENTITY: ClassVar[dict[str, Any]] = {"checkpoint": "0" * 64, "task": "retrieval", "data": [{"split": "val"}]}

    def sound(self, draw: Random) -> Files:
        answers = [{"id": f"t:{n}", "prediction": "yes"} for n in range(4)]
        return {
            "evaluation.json": as_json(self.IDENTITY),
            "answers.jsonl": as_lines(answers) + b"\n",
            "scores.npy": array(np.full((4, 2), np.nan, np.float32)),
        }

    def read(self, folder: Path) -> None:
        predictions.claim(folder, self.IDENTITY)
        with predictions.PredictionLog(folder / "answers.jsonl", str) as log:
            assert all(isinstance(key, str) and isinstance(value, str) for key, value in log.done.items())
            log.add("t:9", "no")
        scores = predictions.open_scores(folder / "scores.npy", 4, 2)
        assert scores.dtype == np.float32
        scores[3, 1] = 1
        assert (folder / "scores.npy").stat().st_size < 10_000


class Indexes(Target):
    """An index of photos, searched."""

    inputs = 50

    @cached_property
    def model(self) -> PixelBert:
        return PixelBert.from_pretrained(saved(self.shared / "checkpoint"), "cpu", "fp32")

    @cached_property
    def whole(self) -> Files:
        index_photos(self.model, write_photos(self.shared / "photos", 6), self.shared / "index")
        return files_of(self.shared / "index")

    def sound(self, draw: Random) -> Files:
        return dict(self.whole)

    def read(self, folder: Path) -> None:
        for shortlist in (3, None):
            index = SearchIndex.open(folder)
            assert len(index) >= 0
            for found in self.model.search(index, "a dog", 3, shortlist):
                assert Path(found.image).parent == self.shared / "photos"
        index_photos(self.model, self.shared / "photos", folder)


# --- The web app


class Requests(Target):
    """A request to the API: an answer, or a 4xx with one sentence that names none of the server's files."""

    inputs = 150
    names_file = False
    BOUNDARY = "0123456789"

    @cached_property
    def client(self) -> TestClient:
        logging.getLogger("pixelbert.serve").setLevel(logging.CRITICAL)
        model = PixelBert.from_pretrained(saved(self.shared / "checkpoint"), "cpu", "fp32")
        index = self.shared / "index"
        index_photos(model, write_photos(self.shared / "photos", 3), index)
        app = create_app(model, "tiny", Limits(upload_mb=1, seconds=15), SearchIndex.open(index))
        client = TestClient(app)
        client.__enter__()
        return client

    def sound(self, draw: Random) -> Files:
        fields = {"text": draw.choice(("a [MASK] dog", "a dog")), "top": "3", "layer": "0", "head": "1", "token": "dog"}
        fields["rollout"] = "false"
        parts = [f'name="{name}"\r\n\r\n{value}'.encode() for name, value in fields.items()]
        kind = draw.choice(("PNG", "JPEG", "GIF"))
        parts.append(b'name="image"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n' + encoded(photo(), kind))
        body = b"".join(f"--{self.BOUNDARY}\r\nContent-Disposition: form-data; ".encode() + p + b"\r\n" for p in parts)
        task = draw.choice(("match", "fill-mask", "attend", "search", "photos/0", "answer", "info"))
        head = {
            "method": "GET" if task in ("search", "photos/0", "info") else "POST",
            "path": f"/api/v1/{task}",
            "query": "text=a%20dog&top=3",
            "headers": {"host": "localhost", "content-type": f"multipart/form-data; boundary={self.BOUNDARY}"},
        }
        return {"head.json": as_json(head), "body": body + f"--{self.BOUNDARY}--\r\n".encode()}

    def read(self, folder: Path) -> None:
        try:
            head = json.loads((folder / "head.json").read_bytes())
            headers = [(str(k).lower().encode(), str(v).encode()) for k, v in head["headers"].items()]
            method, path, query = (str(head[key]) for key in ("method", "path", "query"))
            scope: dict[str, Any] = {
                "type": "http",
                "method": method.encode("ascii").decode(),
                "path": path.encode().decode(),
            }
            scope["query_string"] = query.encode()
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return  # no request at all: a web server lets none of these through
        body = (folder / "body").read_bytes()
        incoming = [{"type": "http.request", "body": body[:100], "more_body": True}]
        incoming += [{"type": "http.request", "body": body[100:]}]
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return incoming.pop(0) if incoming else {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        common = {"asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "http", "root_path": ""}
        common |= {"server": ("127.0.0.1", 80), "client": ("127.0.0.1", 1), "raw_path": b"", "headers": headers}
        assert self.client.portal is not None
        self.client.portal.call(self.client.app, scope | common, receive, send)
        status, answer = sent[0]["status"], b"".join(message.get("body", b"") for message in sent)
        if not 200 <= status < 500:
            raise Fault(f"status {status}: {answer[:500]!r}")
        if status >= 400:
            assert method == "HEAD" or json.loads(answer).keys() == {"error"}
        assert str(self.shared).encode() not in answer
