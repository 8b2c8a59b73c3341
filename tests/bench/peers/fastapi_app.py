"""The usual asyncio implementation: FastAPI, a queue, workers, aiobotocore. One object a payload.

It promises nothing: the answer comes when the payload is in the queue. With a full queue the
handlers wait, and so do the clients. Run with uvicorn on uvloop and httptools, one process, no
access log.
"""

from __future__ import annotations

import asyncio
import json
import os
import uuid
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import uvicorn
from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from fastapi import FastAPI
from pydantic import BaseModel

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_WORKERS: Final = int(os.environ["MAX_WORKERS"])
_queue: Final[asyncio.Queue[Any]] = asyncio.Queue(int(os.environ["MAX_QUEUE"]))


class Collection(BaseModel):
    """The body of a POST."""

    version: str | None = None
    token: str | None = None
    payloads: list[Any]


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Run the workers while the app serves."""
    config = AioConfig(max_pool_connections=_WORKERS)
    async with get_session().create_client("s3", config=config) as s3:
        workers = [asyncio.create_task(upload(s3)) for _ in range(_WORKERS)]
        yield
        for worker in workers:
            worker.cancel()


async def upload(s3: Any) -> None:  # noqa: ANN401 - botocore makes its classes as it runs
    """Run one worker: upload payloads until cancelled."""
    while True:
        body = json.dumps(await _queue.get(), separators=(",", ":")).encode()
        key = f"{datetime.now(UTC):%Y-%m-%d/%H}/{uuid.uuid4()}.json"
        await s3.put_object(Bucket="bench", Key=key, Body=body, ContentType="application/json")


app = FastAPI(lifespan=lifespan)


@app.post("/v1/payloads", status_code=202)
async def accept(collection: Collection) -> dict[str, int]:
    """Queue every payload of a collection."""
    for payload in collection.payloads:
        await _queue.put(payload)
    return {"accepted": len(collection.payloads)}


if __name__ == "__main__":
    uvicorn.run(
        app,
        fd=int(os.environ["LISTEN_FD"]),
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="warning",
    )
