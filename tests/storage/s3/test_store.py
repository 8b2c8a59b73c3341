"""The S3 store against a server that fails in one way at a time."""

from __future__ import annotations

import base64
import hashlib
import zlib
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from payloadd.errors import (
    InvalidObjectError,
    OperatorStoreError,
    SettingsError,
    StoreError,
    TransientStoreError,
)
from payloadd.storage.api import open_store
from tests.storage.s3.test_errors import xml
from tests.support.faults import (
    STORED,
    Answer,
    Behaviour,
    Hang,
    Raw,
    Reset,
    Slow,
    fault_server,
    in_turn,
)
from tests.support.objects import MEMBERS, bytes_of, gzipped, plain

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from payloadd.config.settings import Settings

OBJECT = plain(b'{"a":1}\n')
OK = STORED


async def put_and_raise(
    settings: Callable[..., Settings], *behaviours: Behaviour, **names: str
) -> StoreError:
    """Put one object to a server with this behaviour, and return the error."""
    async with (
        fault_server(in_turn(*behaviours)) as server,
        open_store(settings(AWS_ENDPOINT_URL=server.url, **names)) as store,
    ):
        with pytest.raises(StoreError) as caught:
            await store.put("k", OBJECT, MEMBERS, repeat=False)
    return caught.value


async def test_a_put_has_key_body_type_and_checksums(
    make_settings: Callable[..., Settings],
) -> None:
    """Objects would be stored damaged, without a type, or under another key."""
    body = gzipped(b"\x1f\x8b", b"....")
    async with fault_server(in_turn(OK)) as server:
        settings = make_settings(
            AWS_ENDPOINT_URL=f"{server.url}/base",
            STORE_URL="s3://bucket/pre fix",
            AWS_SESSION_TOKEN="token",
        )
        async with open_store(settings) as store:
            await store.put("ü/../a//b.gz", body, MEMBERS, repeat=False)
            await store.delete("k")

    put, delete = server.requests
    assert (put.method, put.target) == ("PUT", "/base/bucket/pre%20fix/%C3%BC/../a//b.gz")
    assert put.body == bytes_of(body)
    assert put.headers["content-length"] == str(body.size)
    assert put.headers["content-type"] == "application/x-ndjson"
    assert "content-encoding" not in put.headers
    checksum = base64.b64encode(zlib.crc32(put.body).to_bytes(4)).decode()
    assert put.headers["x-amz-checksum-crc32"] == checksum
    assert put.headers["x-amz-content-sha256"] == hashlib.sha256(put.body).hexdigest()
    assert put.headers["x-amz-meta-payloads"] == "1"
    assert put.headers["x-amz-meta-first"] == MEMBERS.first
    assert put.headers["x-amz-meta-last"] == MEMBERS.last
    assert put.headers["x-amz-meta-format"] == "ndjson-1"
    assert "if-none-match" not in put.headers
    assert "content-md5" not in put.headers
    signed = ("x-amz-checksum-crc32", "x-amz-security-token", "host", "content-type")
    own = [f"x-amz-meta-{name}" for name in ("payloads", "first", "last", "format")]
    for name in (*signed, *own):
        assert name in put.headers["authorization"]
    assert (delete.method, delete.target) == ("DELETE", "/base/bucket/pre%20fix/k")
    assert server.connections == 1


@pytest.mark.parametrize(
    ("behaviour", "kind", "code"),
    [
        (Answer(503, xml("SlowDown"), {"retry-after": "3"}), TransientStoreError, "SlowDown"),
        (Answer(500), TransientStoreError, "HTTP500"),
        (Answer(403, xml("AccessDenied")), OperatorStoreError, "AccessDenied"),
        (Answer(403, xml("SignatureDoesNotMatch")), OperatorStoreError, "SignatureDoesNotMatch"),
        (Answer(404, xml("NoSuchBucket")), OperatorStoreError, "NoSuchBucket"),
        (Answer(400, xml("KeyTooLongError")), InvalidObjectError, "KeyTooLongError"),
        (Answer(400, b"<html>no</html>"), OperatorStoreError, "HTTP400"),
        (Answer(301, xml("PermanentRedirect")), OperatorStoreError, "PermanentRedirect"),
        (Answer(307, b"", {"location": "http://s3.example/"}), OperatorStoreError, "HTTP307"),
        (Reset(), TransientStoreError, None),
        (Reset(after=8), TransientStoreError, "ReadError"),
        (Raw(b"SSH-2.0-OpenSSH_9.2\r\n"), TransientStoreError, "RemoteProtocolError"),
        (Raw(b""), TransientStoreError, "RemoteProtocolError"),
        (Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nxx"), TransientStoreError, None),
        (Answer(403, b"<Error>" + b"x" * 3_000_000), OperatorStoreError, "HTTP403"),
        (Answer(403, xml("AccessDenied") + b"x" * 300_000), OperatorStoreError, "AccessDenied"),
    ],
)
async def test_a_fault_is_an_error_of_its_class(
    make_settings: Callable[..., Settings],
    behaviour: Behaviour,
    kind: type[StoreError],
    code: str | None,
) -> None:
    """A failure of the store would lose payloads or stop the pipeline."""
    error = await put_and_raise(make_settings, behaviour)

    assert type(error) is kind
    assert code is None or error.code == code


@pytest.mark.parametrize("behaviour", [Hang(), Hang(after=8), Slow(step=1, pause=0.02)])
async def test_an_attempt_can_be_cancelled(
    make_settings: Callable[..., Settings], behaviour: Behaviour
) -> None:
    """A server that hangs or reads slowly would occupy a worker for ever."""
    begun = trio.Event()

    def once(_request: object) -> Behaviour:
        if begun.is_set():
            return OK
        begun.set()
        return behaviour

    async with (
        fault_server(once) as server,
        open_store(make_settings(AWS_ENDPOINT_URL=server.url)) as store,
    ):
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(
                    partial(store.put, "k", plain(b"x" * 10_000_000), MEMBERS, repeat=False)
                )
                await begun.wait()
                await trio.sleep(0.1)
                assert nursery.child_tasks, "the attempt is still in progress"
                nursery.cancel_scope.cancel()
            await store.put("k", OBJECT, MEMBERS, repeat=False)


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (Answer(204), nullcontext()),
        (Answer(404, xml("NoSuchKey")), nullcontext()),
        (Answer(403), pytest.raises(OperatorStoreError)),
    ],
)
async def test_delete_ignores_a_missing_object(
    make_settings: Callable[..., Settings], answer: Answer, outcome: AbstractContextManager[object]
) -> None:
    """`payloadd check` would fail because its probe is already deleted."""
    async with (
        fault_server(in_turn(answer)) as server,
        open_store(make_settings(AWS_ENDPOINT_URL=server.url)) as store,
    ):
        with outcome:
            await store.delete("k")


async def test_a_key_that_is_not_text_has_the_code_invalid_key(
    make_settings: Callable[..., Settings],
) -> None:
    """The dead letter of such an object would have no code."""
    async with open_store(make_settings()) as store:
        with pytest.raises(InvalidObjectError, match="InvalidKey"):
            await store.put("\udcff", OBJECT, MEMBERS, repeat=False)


async def test_a_prefix_that_is_not_text_stops_the_start(
    make_settings: Callable[..., Settings],
) -> None:
    """Every object would become a dead letter."""
    with pytest.raises(SettingsError, match="STORE_URL"):
        async with open_store(make_settings(STORE_URL="s3://bucket/\udcff")):
            raise AssertionError


async def test_cancelled_puts_free_their_connections(
    make_settings: Callable[..., Settings],
) -> None:
    """A drain would hang at its timeout, or the store would run out of connections."""
    all_arrived = trio.Event()

    def hang(_request: object) -> Hang:
        if len(server.requests) % 4 == 0:
            all_arrived.set()
        return Hang()

    async with fault_server(hang) as server:
        settings = make_settings(AWS_ENDPOINT_URL=server.url, MAX_WORKERS="1")
        async with open_store(settings) as store:
            for _ in range(5):
                all_arrived = trio.Event()
                with trio.fail_after(60):
                    async with trio.open_nursery() as nursery:
                        for index in range(4):
                            nursery.start_soon(
                                partial(store.put, f"k{index}", OBJECT, MEMBERS, repeat=False)
                            )
                        await all_arrived.wait()
                        nursery.cancel_scope.cancel()
            server.script = in_turn(OK)
            with trio.fail_after(60):
                await store.put("k", OBJECT, MEMBERS, repeat=False)
