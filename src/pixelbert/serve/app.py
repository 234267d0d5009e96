"""The HTTP API under /api/v1 and the page's files: thin routes over `PixelBert`, in the shapes that the commands print.

Only what the checkpoint can do has a route.
"""

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import AsyncIterator, Callable, Hashable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, File, Form, Query, Request, Response, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from pixelbert import __version__, demo
from pixelbert.data.images import open_image
from pixelbert.errors import PixelBertError
from pixelbert.model.fine_tuning import (
    PixelBertForImageAndTextRetrieval,
    PixelBertForImagesAndTextClassification,
    PixelBertForQuestionAnswering,
)
from pixelbert.model.modeling import PixelBertForPreTraining
from pixelbert.predict.encoded import as_photo
from pixelbert.predict.pixelbert import KINDS, PixelBert
from pixelbert.serve.batching import BusyError, ModelThread
from pixelbert.serve.guard import UNFORESEEN, Guard, error
from pixelbert.serve.limits import Limits
from pixelbert.serve.metrics import Metrics

API = "/api/v1"
CAN: dict[type, tuple[str, ...]] = {
    PixelBertForPreTraining: ("match", "fill-mask", "attend"),
    PixelBertForImageAndTextRetrieval: ("match", "attend"),
    PixelBertForQuestionAnswering: ("attend",),
    PixelBertForImagesAndTextClassification: ("reason", "attend"),
}
TASKS = ("match", "answer", "fill-mask", "reason", "attend", "search")
STATIC = Path(__file__).parent / "static"
PAGES = {"/": "index.html", "/docs": "docs.html"}
PHOTOS = Path(demo.__file__).parent / "photos"
EXAMPLES = {  # photos to begin with: what is in them, and a question
    "COCO_val2014_000000089880.jpg": ("two dogs playing on the grass", "how many dogs are there"),
    "COCO_val2014_000000190007.jpg": ("a surfer riding a big wave", "what sport is this"),
    "COCO_val2014_000000173830.jpg": ("a skier going down a snowy hill", "what is the man doing"),
    "COCO_val2014_000000181859.jpg": ("a cat lying in a sink", "what animal is this"),
    "COCO_val2014_000000066635.jpg": ("a computer on a wooden desk", "what color is the table"),
    "COCO_val2014_000000187513.jpg": ("a green bathroom with a glass shower", "what is above the sink"),
}
RESULT_SIDE = 640  # pixels of the longer side of a photo that was found
log = logging.getLogger("pixelbert.serve")


class Error(BaseModel):
    """What went wrong, in a sentence."""

    error: str


class Score(BaseModel):
    """A sentence and the probability that it belongs to the photo."""

    text: str
    score: float


class Cut(BaseModel):
    """A sentence that is longer than what the model reads: how many tokens it has, and how many of them are read."""

    text: str
    tokens: int
    read: int


class Unknown(BaseModel):
    """A sentence with words that the model does not know, how many tokens are read of it, and how many are unknown."""

    text: str
    words: list[str]
    tokens: int
    unknown: int


class Reading(BaseModel):
    """What was not read of the sentences that were sent; nothing, if all was."""

    cut: list[Cut]
    unknown: list[Unknown]


class Scores(Reading):
    """In the order of the request."""

    scores: list[Score]


class Answer(BaseModel):
    """An answer and its probability."""

    answer: str
    score: float


class Answers(Reading):
    """Best first."""

    answers: list[Answer]


class Fill(BaseModel):
    """A token and its probability; one that starts with ## ends a word."""

    token: str
    score: float


class Masks(Reading):
    """A list for each [MASK] in order, best first."""

    masks: list[list[Fill]]


class Judgement(Reading):
    """Whether the statement is true, and the probability that it is."""

    true: bool
    score: float


class Word(BaseModel):
    """A word, the share of its attention that falls on the photo, and where: rows of the grid, which sums to 1."""

    word: str
    share: float
    map: list[list[float]]


class Words(Reading):
    """The words in order, or the one that was asked for."""

    words: list[Word]


class Found(BaseModel):
    """A photo of the index: where this server has it, how well it fits, and whether it is still as it was indexed."""

    image: str
    score: float
    changed: bool
    missing: bool


class Results(Reading):
    """Best first; and how many photos of the index are damaged there and left out."""

    results: list[Found]
    left_out: int


class Example(BaseModel):
    """A photo to begin with."""

    image: str
    text: str
    question: str


class Info(BaseModel):
    """What this server can do, and within what limits."""

    name: str
    kind: str
    can: list[str]
    layers: int
    heads: int
    version: str
    limits: dict[str, float]
    examples: list[Example]


def abilities(model: PixelBert, index: Any) -> list[str]:
    """What a server of this model, and of an index if there is one, can do."""
    more = {"answer": model.answering is not None, "search": index is not None}
    return [task for task in TASKS if more.get(task, task in CAN[type(model.model)])]


Photo = Annotated[UploadFile, File(description="an image file: JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF or JPEG 2000")]
Top = Annotated[int, Form(ge=1, le=100, description="how many to give")]


def create_app(
    model: PixelBert, name: str, limits: Limits | None = None, index: Any = None, hosts: frozenset[str] | None = None
) -> Guard:
    """The whole server as an ASGI app. Its thread starts and ends with the app's lifespan.

    Args:
        model: used by this app alone from here on.
        name: what to call it on the page.
        index: of photos to search, as `PixelBert.search` takes it.
        hosts: see `Guard`.
    """
    limits, metrics = limits or Limits(), Metrics()
    can = abilities(model, index)
    drawing = asyncio.Lock()  # one photo of the index after another, each of which may be large
    found_photos: list[str] = []  # by number: a client never names a file
    worker: ModelThread

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        nonlocal worker
        worker = ModelThread(model, limits.waiting, metrics, limits.pixels)
        yield
        await run_in_threadpool(worker.close)

    app = FastAPI(
        title="pixelbert",
        version=__version__,
        description=f"{name}, {KINDS[type(model.model)]}. It can: {', '.join(can)}. All errors are "
        '{"error": "a sentence"}.',
        openapi_url=f"{API}/openapi.json",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    refusals: dict[int | str, dict[str, Any]] = {
        413: {"model": Error, "description": "Too large"},
        422: {"model": Error, "description": "A photo or text that cannot be used"},
        503: {"model": Error, "description": "Busy: come back after the seconds in Retry-After"},
    }
    api = APIRouter(prefix=API, responses=refusals)

    def route(task: str, **options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """As `api.post`, where the checkpoint can do it."""
        return api.post(f"/{task}", **options) if task in can else lambda function: function

    async def ask(call: Callable[[], Any], text: str, images: Sequence[bytes] = ()) -> tuple[Any, dict[str, Any]]:
        """What the model says, and the fields that tell what it did not read of the text."""

        def both() -> tuple[Any, dict[str, Any]]:
            unread = model.processor.unread([text])
            if unread.empty:  # here, since a search tells its other errors to the log alone
                raise HTTPException(422, "the text has nothing but characters that are not seen: write a sentence")
            return call(), unread.fields()

        return await worker.run(both, images)

    async def bytes_of(upload: UploadFile) -> bytes:
        return await run_in_threadpool(limits.photo, await upload.read())

    @route("match")
    async def match(image: Photo, text: Annotated[list[str], Form(description="a sentence; once for each")]) -> Scores:
        """The probability that each sentence belongs to the photo."""
        texts = limits.texts(text)
        scores, unread = await worker.match(await bytes_of(image), texts)
        scored = [Score(text=text, score=score) for text, score in zip(texts, scores, strict=True)]
        return Scores(scores=scored, **unread.fields())  # type: ignore[arg-type]

    @route("answer")
    async def answer(image: Photo, question: Annotated[str, Form()], top: Top = 5) -> Answers:
        """The likeliest answers to a question about the photo."""
        limits.text(question, "question")
        photo = await bytes_of(image)
        answers, unread = await ask(lambda: model.answer(photo, question, top), question, [photo])
        return Answers(answers=[Answer(**a._asdict()) for a in answers], **unread)

    @route("fill-mask")
    async def fill_mask(
        image: Photo, text: Annotated[str, Form(description="with [MASK] for the words to fill in")], top: Top = 5
    ) -> Masks:
        """The likeliest tokens for each [MASK] of a sentence."""
        limits.text(text)
        photo = await bytes_of(image)
        masks, unread = await ask(lambda: model.fill_mask(photo, text, top), text, [photo])
        return Masks(masks=[[Fill(**fill._asdict()) for fill in fills] for fills in masks], **unread)

    @route("reason")
    async def reason(left: Photo, right: Photo, statement: Annotated[str, Form()]) -> Judgement:
        """Whether a statement is true of two photos."""
        limits.text(statement, "statement")
        one, other = await bytes_of(left), await bytes_of(right)
        judgement, unread = await ask(lambda: model.reason(one, other, statement), statement, [one, other])
        return Judgement(**judgement._asdict(), **unread)

    @route("attend")
    async def attend(
        image: Photo,
        text: Annotated[str, Form()],
        token: Annotated[str | None, Form(description="a word of the text; all by default")] = None,
        layer: Annotated[
            int | None, Form(ge=0, description="from 0; the first by default, with rollout the last")
        ] = None,
        head: Annotated[int | None, Form(ge=0, description="from 0; the mean over the heads by default")] = None,
        rollout: Annotated[bool, Form(description="follow attention through all layers")] = False,
    ) -> Words:
        """Which pixels of the photo each word looks at."""
        limits.text(text)
        if token is not None:
            limits.text(token, "word")
        photo = await bytes_of(image)
        maps, unread = await ask(lambda: model.attend(photo, text, token, layer, head, rollout), text, [photo])
        return Words(words=[Word(word=word, share=share, map=grid.tolist()) for word, grid, share in maps], **unread)

    if index is not None:

        @api.get("/search")
        async def search(
            text: Annotated[str, Query(description="what to look for")],
            top: Annotated[int, Query(ge=1, le=100, description="how many photos to give")] = 12,
        ) -> Results:
            """The photos of the index that a text fits best."""
            limits.text(text)
            try:
                results, unread = await ask(lambda: model.search(index, text, top=top), text)
            except PixelBertError as failure:  # names files of this machine: not for clients
                log.error("search failed: %s", failure)
                raise HTTPException(500, "the search failed; the server's log says why") from None
            found = [Found(image=number_of(path), score=s, changed=c, missing=m) for path, s, c, m in results]
            return Results(results=found, left_out=len(index.left_out), **unread)

        @api.get("/photos/{number}", response_class=Response, responses={404: {"model": Error}})
        async def photo(number: int) -> Response:
            """A photo that a search found, scaled down."""
            if not 0 <= number < len(found_photos):
                raise HTTPException(404, f"no search has found a photo with the number {number}")
            try:
                path = found_photos[number]
                async with drawing:
                    data = await run_in_threadpool(lambda: scaled_down(path, as_photo(path).key))
            except PixelBertError:
                raise HTTPException(404, "this photo is no longer where the index found it") from None
            return Response(data, media_type="image/jpeg")

    def number_of(path: str) -> str:
        if path not in found_photos:
            found_photos.append(path)
        return f"{API}/photos/{found_photos.index(path)}"

    @api.get("/info")
    async def info() -> Info:
        """What this server can do."""
        config = model.model.config
        return Info(
            name=name,
            kind=KINDS[type(model.model)],
            can=can,
            layers=config.num_hidden_layers,
            heads=config.num_attention_heads,
            version=__version__,
            limits=vars(limits),
            examples=[
                Example(image=f"/examples/{file}", text=text, question=question)
                for file, (text, question) in EXAMPLES.items()
            ],
        )

    app.include_router(api)

    @app.get("/healthz", include_in_schema=False)
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/metrics", include_in_schema=False)
    async def numbers() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/attribution", include_in_schema=False)
    async def attribution() -> FileResponse:
        return FileResponse(PHOTOS / "ATTRIBUTION.md", media_type="text/plain; charset=utf-8")

    for path, file in PAGES.items():
        app.add_api_route(path, page(STATIC / file), include_in_schema=False)
    app.mount("/static", StaticFiles(directory=STATIC))
    app.mount("/examples", StaticFiles(directory=PHOTOS))

    @app.exception_handler(BusyError)
    async def busy(_: Request, failure: BusyError) -> JSONResponse:
        return error(503, str(failure))

    @app.exception_handler(PixelBertError)
    async def unusable(_: Request, failure: PixelBertError) -> JSONResponse:
        return error(422, str(failure))

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, failure: RequestValidationError) -> JSONResponse:
        return error(422, "; ".join(said(problem) for problem in failure.errors()[:5]))

    @app.exception_handler(HTTPException)
    async def refused(request: Request, failure: HTTPException) -> JSONResponse:
        message = failure.detail
        task = request.url.path.removeprefix(f"{API}/")
        if failure.status_code == 404 and task in TASKS:
            message = f"this checkpoint is {KINDS[type(model.model)]}; here it can {', '.join(can)}, not {task}"
            message += ": start the server with --index to search" if task == "search" else ""
        elif message == "Not Found":
            message = "there is nothing at this address: / is the page, /docs describes the API"
        elif failure.status_code == 405:
            message = f"{request.method} is not for this address: /docs says what is"
        return error(failure.status_code, message, failure.headers)

    @app.exception_handler(Exception)
    async def unforeseen(_: Request, failure: Exception) -> JSONResponse:
        return error(500, UNFORESEEN)  # and then it is raised again, for the guard to log

    endpoints = frozenset(["/", "/docs", "/healthz", "/metrics", *(f"{API}/{task}" for task in ("info", *TASKS))])
    return Guard(app, limits, metrics, endpoints, hosts)


def said(problem: Mapping[str, Any]) -> str:
    """What is wrong with a field, in words."""
    field = f"the field {'.'.join(map(str, problem['loc'][1:]))}"
    if problem["type"] == "missing":
        return f"{field} is missing"
    if "UploadFile" in problem["msg"]:
        return f"{field} is not a file: send the photo as one"
    return f"{field}: {problem['msg']}"


def page(file: Path) -> Callable[[], Any]:
    """A route that answers with a file."""

    async def send() -> FileResponse:
        return FileResponse(file)

    return send


@lru_cache(128)
def scaled_down(path: str, key: Hashable) -> bytes:
    """A photo as a small JPEG.

    Args:
        key: see `as_photo`; another one when the file has changed.

    Raises:
        ImageError: see `open_image`.
    """
    image = open_image(path)
    image.thumbnail((RESULT_SIDE, RESULT_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
