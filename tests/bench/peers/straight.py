"""The libraries of payloadd, combined in the simplest way. One object a payload.

A Quart handler on Hypercorn, a bounded memory channel, workers that sign with botocore and PUT with
httpx's pool. It promises nothing: the answer comes when the payload is in the channel, and handlers
wait while the channel is full. The difference to payloadd shows the effect of the journal, the
batches and the two fast paths.
"""

from __future__ import annotations

import json
import os
import uuid
from datetime import UTC, datetime
from typing import Any, Final

import httpx
import trio
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypercorn.config import Config
from hypercorn.trio import serve
from quart import request
from quart_trio import QuartTrio

_WORKERS: Final = int(os.environ["MAX_WORKERS"])
_BUCKET: Final = os.environ["AWS_ENDPOINT_URL_S3"] + "/bench"


def main() -> None:
    """Serve until the process is killed."""
    trio.run(_serve)


async def _serve() -> None:
    send, receive = trio.open_memory_channel[Any](int(os.environ["MAX_QUEUE"]))
    limits = httpx.Limits(max_connections=_WORKERS, max_keepalive_connections=_WORKERS)
    async with (
        httpx.AsyncClient(limits=limits, trust_env=False) as client,
        trio.open_nursery() as nursery,
    ):
        for _ in range(_WORKERS):
            nursery.start_soon(_upload, client, receive)
        config = Config()
        config.bind = [f"fd://{os.environ['LISTEN_FD']}"]
        await serve(_app(send), config)


def _app(send: trio.MemorySendChannel[Any]) -> QuartTrio:
    app = QuartTrio(__name__)

    async def accept() -> tuple[dict[str, int], int]:
        payloads = (await request.get_json())["payloads"]
        for payload in payloads:
            await send.send(payload)
        return {"accepted": len(payloads)}, 202

    app.add_url_rule("/v1/payloads", view_func=accept, methods=["POST"])
    return app


async def _upload(client: httpx.AsyncClient, receive: trio.MemoryReceiveChannel[Any]) -> None:
    signer = S3SigV4Auth(
        Credentials(os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]),
        "s3",
        os.environ["AWS_REGION"],
    )
    async for payload in receive:
        body = json.dumps(payload, separators=(",", ":")).encode()
        url = f"{_BUCKET}/{datetime.now(UTC):%Y-%m-%d/%H}/{uuid.uuid4()}.json"
        signed = AWSRequest("PUT", url, {"Content-Type": "application/json"}, body)
        signer.add_auth(signed)
        answer = await client.put(url, content=body, headers=dict(signed.headers))
        answer.raise_for_status()


if __name__ == "__main__":
    main()
