"""The routes: search, add, facts, health, metrics, and the page."""

from __future__ import annotations

import time as clock
from collections.abc import Awaitable, Callable
from datetime import datetime
from functools import partial
from importlib.resources import files
from typing import Annotated

import anyio
import numpy as np
from fastapi import FastAPI, File, Form, Request, Response, UploadFile
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.middleware.base import RequestResponseEndpoint

from pipelines.errors import UserError
from pipelines.retrieval.gallery_rows import MAX_CAMERA, Filter, time_of
from pipelines.retrieval.search import Query
from pipelines.service.desk import (
    Answer,
    Desk,
    Facts,
    Input,
    RefusedError,
    Stored,
    UnavailableError,
)
from pipelines.service.guard import Guard

Embed = Callable[[Input], Awaitable[np.ndarray]]
"""(D,) unit row of what a request holds."""
Trouble = Callable[[], Awaitable[str]]
"""Why nothing is embedded now, "" where all is well."""
Camera = Annotated[int, Field(ge=-1, le=MAX_CAMERA)]
"""-1 where it is unknown."""
_ADDING = 16  # threads of their own, since an addition may wait for another writer
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "img-src data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)


def build(desk: Desk, embed: Embed, *, trouble: Trouble, token: str, max_bytes: int) -> Guard:
    """The application.

    Args:
        desk: answers.
        embed: see `Embed`.
        trouble: see `Trouble`.
        token: see `pipelines.service.guard.Guard`.
        max_bytes: of a request.
    """
    app = FastAPI(title="CrossReID", docs_url="/docs", redoc_url=None)
    registry = _measure_requests(app, desk)
    _add_pages(app, desk, registry, trouble)
    _add_questions(app, desk, embed)
    return Guard(app, token=token, max_bytes=max_bytes)


def _measure_requests(app: FastAPI, desk: Desk) -> CollectorRegistry:
    """Count and time every request; explain those that are refused."""
    registry = CollectorRegistry()
    seconds = Histogram(
        "crossreid_request_seconds", "Time of a request.", ["route", "status"], registry=registry
    )
    refused = Counter("crossreid_refused", "Requests that were refused.", registry=registry)
    Gauge("crossreid_rows", "Rows of the gallery.", registry=registry).set_function(
        lambda: desk.facts().rows
    )

    @app.middleware("http")
    async def measured(request: Request, call_next: RequestResponseEndpoint) -> Response:
        began = clock.perf_counter()
        response = await call_next(request)
        route = getattr(request.scope.get("route"), "path", "other")
        seconds.labels(route, response.status_code).observe(clock.perf_counter() - began)
        return response

    @app.exception_handler(RefusedError)
    async def explained(request: Request, error: RefusedError) -> JSONResponse:
        refused.inc()
        status = 503 if isinstance(error, UnavailableError) else 400
        return JSONResponse({"detail": str(error)}, status_code=status)

    return registry


def _add_pages(app: FastAPI, desk: Desk, registry: CollectorRegistry, trouble: Trouble) -> None:
    """The page, and what is told of the service itself."""

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def page() -> HTMLResponse:
        text = files("pipelines.service").joinpath("page.html").read_text(encoding="utf-8")
        return HTMLResponse(text, headers={"Content-Security-Policy": _POLICY})

    @app.get("/health")
    async def health(response: Response) -> dict[str, str]:
        said = await trouble()
        if said:
            response.status_code = 503
        return {"status": said or "ok"}

    @app.get("/facts")
    async def facts() -> Facts:
        return await run_in_threadpool(desk.facts)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> PlainTextResponse:
        text = await run_in_threadpool(generate_latest, registry)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")


def _add_questions(app: FastAPI, desk: Desk, embed: Embed) -> None:
    """Searching, and adding images."""
    adding = anyio.CapacityLimiter(_ADDING)

    @app.post("/search")
    async def search(
        image: Annotated[UploadFile | None, File()] = None,
        text: Annotated[str, Form(max_length=2000)] = "",
        id: Annotated[str, Form(max_length=4000)] = "",
        seen_as: Annotated[str, Form()] = "",
        modality: Annotated[str, Form()] = "",
        camera: Annotated[list[Camera] | None, Form()] = None,
        since: Annotated[str, Form()] = "",
        until: Annotated[str, Form()] = "",
        top: Annotated[int, Form()] = 20,
        min_probability: Annotated[float, Form(ge=0, le=1)] = 0.0,
    ) -> dict[str, list[Answer]]:
        """One of image, text and id; filters say what answers may be."""
        if (image is not None) + bool(text.strip()) + bool(id) != 1:
            raise RefusedError("send an image, a sentence or an id, and one of them")
        where = _filter(desk, modality, camera, since, until)
        if id:
            query = await run_in_threadpool(desk.known, id)
        elif image is not None:
            seen = desk.modality(seen_as)
            pixels = await run_in_threadpool(desk.pixels, await image.read())
            query = Query(await embed(Input(pixels, seen)), "image", seen)
        else:
            seen = desk.modality("text", text=True)
            asked = Input(text, seen, joint=desk.has_words)
            query = Query(await embed(asked), "text", seen)
        hits = await run_in_threadpool(
            desk.search, query, top=top, where=where, min_probability=min_probability
        )
        return {"answers": hits}

    @app.post("/images")
    async def add(
        image: Annotated[UploadFile, File()],
        seen_as: Annotated[str, Form()] = "",
        camera: Annotated[Camera, Form()] = -1,
        time: Annotated[str, Form()] = "",
    ) -> Stored:
        """Add an image; the same one again changes nothing."""
        seen = desk.modality(seen_as)
        data = await image.read()
        pixels = await run_in_threadpool(desk.pixels, data)
        vector = await embed(Input(pixels, seen))
        in_words = await embed(Input(pixels, seen, joint=True)) if desk.has_words else None
        when = _time(time, "time")
        store = partial(desk.add, data, vector, seen, in_words=in_words, camera=camera, time=when)
        return await anyio.to_thread.run_sync(store, limiter=adding)


def _filter(desk: Desk, modality: str, cameras: list[int] | None, since: str, until: str) -> Filter:
    return Filter(
        modality=desk.modality(modality, text=True) if modality else None,
        cameras=tuple(cameras or ()),
        since=_time(since, "since"),
        until=_time(until, "until"),
    )


def _time(text: str, name: str) -> datetime | None:
    try:
        return time_of(text or None, name)
    except UserError as error:
        raise RefusedError(str(error)) from error
