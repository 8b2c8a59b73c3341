"""Damaged requests for tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import h2.connection

from tests.ingress.rig import COLLECTION, post

if TYPE_CHECKING:
    import random

TOKEN = "a-token"
HEAD = b"POST /v1/payloads HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


def mangled(chance: random.Random) -> bytes:
    """Return requests with a few bytes changed, lost or added."""
    websocket = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    h2c = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n"
    client = h2.connection.H2Connection()
    client.initiate_connection()
    client.send_headers(1, [(":method", "CONNECT"), (":authority", "x")])
    kind = "Content-Type: application/json"
    seeds = [
        post() * 3,
        post(COLLECTION, kind, f"Authorization: Bearer {TOKEN}", "Origin: https://x.example") * 2,
        post(b'{"a":\n1}', kind, f"authorization: bearer {TOKEN}", path="/v1/payload/") + post(),
        post(b"[1,2]", "Content-Type: text/plain", f"Authorization: Bearer {TOKEN}"),
        post().replace(b"POST", b"PUT") + post(b"1\n2\n", "Content-Type: application/ndjson"),
        CHUNKED + b"16\r\n" + COLLECTION + b"\r\n0\r\n\r\n" + post(),
        HEAD + b"Expect: 100-continue\r\nContent-Length: 22\r\n\r\n" + COLLECTION,
        b"GET / HTTP/1.1\r\nHost: x\r\n" + websocket + b"Sec-WebSocket-Key: eA==\r\n\r\n\x81\x05hi",
        b"GET / HTTP/1.1\r\nHost: x\r\n" + h2c,
        client.data_to_send(),
    ]
    data = bytearray(chance.choice(seeds))
    for _ in range(chance.choice([0, 1, 2, 5])):
        position = chance.randrange(len(data))
        match chance.randrange(4):
            case 0:
                data[position] = chance.randrange(256)
            case 1:
                del data[position : position + chance.randrange(1, 20)]
            case 2:
                data[position:position] = chance.randbytes(5)
            case _:
                del data[position + 1 :]
        data = data or bytearray(b"x")
    return bytes(data)
