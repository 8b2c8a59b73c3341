"""Bodies that the signature does not cover, and when it has to."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

import pytest
import structlog.testing

from payloadd.errors import OperatorStoreError
from tests.support.objects import MEMBERS, bytes_of, plain
from tests.support.store import FakeS3, Refusal
from tests.support.store_behaviours import (
    ACCESS_DENIED,
    NOT_IMPLEMENTED,
    TAKE,
    InTurn,
    Rejects,
    Take,
    Wants,
)
from tests.support.store_in_memory import store_in_memory

if TYPE_CHECKING:
    from tests.support.store import Behaviour

OBJECT: Final = plain(b'{"a":1}\n')
SIGNED: Final = hashlib.sha256(bytes_of(OBJECT)).hexdigest()
UNSIGNED: Final = "UNSIGNED-PAYLOAD"
HTTP: Final = {"AWS_ENDPOINT_URL_S3": "http://s3.example"}
HTTPS: Final = {"AWS_ENDPOINT_URL_S3": "https://s3.example"}
REFUSAL: Final = Refusal(400, "InvalidRequest", "UNSIGNED-PAYLOAD is not supported")
MD5_REQUIRED: Final = Refusal(400, "InvalidRequest", "Content-MD5 HTTP header is required")


async def hashes_of(fake: FakeS3, environ: dict[str, str]) -> list[str]:
    """Put three objects one after the other, and return the hash that each request stated."""
    store = await store_in_memory(fake, **environ)
    for number in range(3):
        await store.put(f"k{number}", OBJECT, MEMBERS, repeat=False)
    await store.aclose()
    assert len(fake.objects) == 3
    return [seen.headers["x-amz-content-sha256"] for seen in fake.seen]


async def test_over_https_bodies_are_unsigned_once_a_checksum_was_repeated() -> None:
    """The SHA-256 of each body would be a large part of the CPU time of an upload."""
    fake = FakeS3()
    assert await hashes_of(fake, HTTPS) == [SIGNED, UNSIGNED, UNSIGNED]
    assert all("x-amz-checksum-crc32" in seen.headers for seen in fake.seen)


@pytest.mark.parametrize(
    ("environ", "behaviour"),
    [
        (HTTP, TAKE),
        (HTTPS | {"S3_CHECKSUM": "none"}, TAKE),
        (HTTPS | {"S3_CHECKSUM": "sha256"}, TAKE),
        (HTTPS, Take(echo=False)),
    ],
    ids=["http", "no checksum", "sha256", "not repeated"],
)
async def test_bodies_are_signed_where_nothing_else_protects_them(
    environ: dict[str, str], behaviour: Behaviour
) -> None:
    """A store without checksums would keep an object that was damaged on its way."""
    assert await hashes_of(FakeS3(behaviour), environ) == [SIGNED] * 3


@pytest.mark.parametrize("refusal", [REFUSAL, ACCESS_DENIED, NOT_IMPLEMENTED])
async def test_a_store_that_refuses_unsigned_bodies_gets_signed_ones(refusal: Refusal) -> None:
    """A bucket policy may forbid UNSIGNED-PAYLOAD: no object could be stored."""
    fake = FakeS3(Rejects("x-amz-content-sha256", refusal, UNSIGNED))
    with structlog.testing.capture_logs() as lines:
        assert await hashes_of(fake, HTTPS) == [SIGNED, UNSIGNED, SIGNED, SIGNED]
    assert [line["what"] for line in lines] == ["UNSIGNED-PAYLOAD"]


async def test_an_answer_without_the_checksum_is_followed_by_a_signed_body() -> None:
    """A gateway may lead to another server, which does not check checksums."""
    fake = FakeS3(InTurn((TAKE, Take(echo=False))))
    assert await hashes_of(fake, HTTPS) == [SIGNED, UNSIGNED, SIGNED, SIGNED]


async def test_a_refusal_of_signed_bodies_too_teaches_nothing() -> None:
    """After keys without rights were corrected, bodies would be hashed for nothing."""
    fake = FakeS3()
    store = await store_in_memory(fake, **HTTPS)
    await store.put("k", OBJECT, MEMBERS, repeat=False)
    fake.behaviour = ACCESS_DENIED
    with pytest.raises(OperatorStoreError, match="AccessDenied"):
        await store.put("l", OBJECT, MEMBERS, repeat=False)
    fake.behaviour = TAKE
    await store.put("l", OBJECT, MEMBERS, repeat=True)
    await store.aclose()

    assert [seen.headers["x-amz-content-sha256"] for seen in fake.seen] == [
        SIGNED,
        *(UNSIGNED, SIGNED),
        UNSIGNED,
    ]
    assert fake.seen[-1].headers["if-none-match"] == "*"


async def test_what_was_learnt_before_is_kept() -> None:
    """Each object would be refused first, for a header that the store requires."""
    fake = FakeS3(Wants("content-md5", MD5_REQUIRED))
    assert await hashes_of(fake, HTTPS) == [SIGNED, SIGNED, SIGNED, UNSIGNED]
    assert ["content-md5" in seen.headers for seen in fake.seen] == [False, True, True, True]
