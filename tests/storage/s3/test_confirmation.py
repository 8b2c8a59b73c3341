"""Answers that confirm a PUT, and answers that only look like it."""

from __future__ import annotations

import base64
import hashlib
import threading
import zlib
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payloadd.errors import OperatorStoreError
from payloadd.storage.http1.response import ResponseParser
from payloadd.storage.s3 import confirmation
from payloadd.storage.s3.checksums import differing_checksum
from payloadd.storage.s3.confirmation import comparable_md5
from payloadd.storage.s3.glance import Glance
from tests.support.objects import MEMBERS, bytes_of, plain
from tests.support.store import FakeS3
from tests.support.store_behaviours import Answer, InTurn, Take
from tests.support.store_in_memory import store_in_memory

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from payloadd.model.formats.api import EncodedObject
    from tests.support.store import Behaviour

OBJECT: Final = plain(b'{"a":1}\n')
LARGE: Final = plain(b"x" * 100_000)
MD5: Final = f'"{hashlib.md5(bytes_of(OBJECT), usedforsecurity=False).hexdigest()}"'
OTHER_MD5: Final = '"900150983cd24fb0d6963f7d28e17f72"'
CRC32: Final = base64.b64encode(zlib.crc32(bytes_of(OBJECT)).to_bytes(4)).decode()
NO_ECHO: Final = Take(echo=False)


def etag(text: str, **headers: str) -> Answer:
    """Return an answer with this ETag; ``_`` in names of headers stands for ``-``."""
    found = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(200, headers={"etag": text, **found})


async def put_all(fake: FakeS3, *bodies: EncodedObject, **environ: str) -> None:
    """Put objects one after the other."""
    store = await store_in_memory(fake, **environ)
    for number, body in enumerate(bodies):
        await store.put(f"k{number}", body, MEMBERS, repeat=False)


@pytest.mark.parametrize(
    "answers",
    [
        # The ETags of this store are no MD5s: a difference proves nothing.
        (etag(OTHER_MD5), etag(OTHER_MD5)),
        (etag('"0"'), etag("unquoted"), etag('"d41d8cd98f00b204e9800998ecf8427e-1"')),
        # They are, but not with these encryptions.
        (NO_ECHO, etag(OTHER_MD5, x_amz_server_side_encryption="aws:kms")),
        (
            NO_ECHO,
            etag(OTHER_MD5, x_amz_server_side_encryption_customer_algorithm="AES256"),
        ),
        # A checksum is better than an ETag.
        (NO_ECHO, etag(OTHER_MD5, x_amz_checksum_crc32=CRC32)),
        (etag('"0"', x_amz_checksum_crc32=CRC32, x_amz_checksum_type="FULL_OBJECT"),),
        # Checksums of parts, and of unknown algorithms.
        (etag('"0"', x_amz_checksum_crc32="AAAAAA==-2"),),
        (etag('"0"', x_amz_checksum_xxhash="AAAA"),),
    ],
)
async def test_an_answer_without_a_contradiction_confirms(answers: tuple[Behaviour, ...]) -> None:
    """A good store would be a trouble."""
    await put_all(FakeS3(InTurn(answers), port=1), *[OBJECT] * (len(answers) + 1))


@pytest.mark.parametrize("body", [OBJECT, LARGE], ids=["in the loop", "in a thread"])
@pytest.mark.parametrize(
    "lie",
    [
        etag(OTHER_MD5),
        etag(OTHER_MD5.upper()),
        etag(OTHER_MD5, x_amz_server_side_encryption="AES256"),
        etag(OTHER_MD5, x_amz_checksum_crc32="AAAAAA=="),
        etag('"0"', x_amz_checksum_sha256="AAAA"),
        etag('"0"', X_AMZ_Checksum_CRC32="AAAAAA=="),
    ],
)
async def test_a_contradiction_is_a_wrong_answer(lie: Behaviour, body: EncodedObject) -> None:
    """A damaged object would be settled."""
    fake = FakeS3(InTurn((NO_ECHO, lie)), port=1)
    with pytest.raises(OperatorStoreError, match="WRONG_ANSWER"):
        await put_all(fake, OBJECT, body)


async def test_checksums_of_a_large_object_are_compared_in_a_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A store that repeats another checksum than the one sent would stop the event loop."""
    threads: list[threading.Thread] = []

    def differing(pieces: Sequence[bytes], headers: Mapping[str, str]) -> str | None:
        threads.append(threading.current_thread())
        return differing_checksum(pieces, headers)

    monkeypatch.setattr(confirmation, "differing_checksum", differing)
    large = plain(b"x" * 300_000)
    await put_all(FakeS3(NO_ECHO, port=1), OBJECT, large)
    assert [one is threading.main_thread() for one in threads] == [True, False]


async def test_a_store_whose_etags_became_md5s_is_not_trusted_by_chance() -> None:
    """The first ETag decides whether ETags are compared; a KMS key may be set later."""
    fake = FakeS3(InTurn((etag(OTHER_MD5), NO_ECHO, etag(OTHER_MD5))), port=1)
    await put_all(fake, OBJECT, OBJECT, OBJECT)


def test_content_md5_is_not_computed_twice() -> None:
    """The ETag is that of the object, encrypted with S3's own keys or not at all."""
    headers = {"etag": MD5}
    assert comparable_md5(headers) == MD5.strip('"').encode()
    assert comparable_md5(headers | {"x-amz-server-side-encryption": "aws:kms"}) is None


GOOD: Final = (
    "HTTP/1.1 200 OK",
    "Date: Fri, 27 Nov 2026 03:00:22 GMT",
    "Content-Length: 0",
    'ETag: "0"',
    "x-amz-checksum-crc32: AAAAAA==",
)


def glance(*lines: str, body: bytes = b"", seen: Glance | None = None) -> bool:
    """Return whether an answer with these lines is confirmed at a glance."""
    parsed = ResponseParser("PUT")
    parsed.feed("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
    seen = seen or Glance("x-amz-checksum-crc32", 1)
    return seen.confirms(parsed, (b"other", b"AAAAAA=="))


def test_a_confirmation_is_seen_at_a_glance_in_every_spelling() -> None:
    """Every answer would be parsed a second time."""
    seen = Glance("x-amz-checksum-crc32", 1)
    upper = (*GOOD[:3], 'etag: "0"', "X-Amz-Checksum-Crc32: AAAAAA==")
    for lines in (GOOD, GOOD, upper, upper, GOOD):
        assert glance(*lines, seen=seen)


@pytest.mark.parametrize(
    "lines",
    [
        ("HTTP/1.1 201 Created", *GOOD[1:]),
        ("HTTP/1.0 200 OK", *GOOD[1:]),
        ("HTTP/1.1 103 Hints", *GOOD[3:], "", "HTTP/1.1 200 OK", "Content-Length: 0"),
        GOOD[:4],
        (*GOOD[:3], GOOD[4]),
        (*GOOD[:3], 'ETag: ""', "x-amz-checksum-crc32: AAAAAA="),
        (*GOOD[:4], "x-amz-checksum-crc32: AAAAAAA="),
        (*GOOD[:4], "x-amz-checksum-crc32: aaaaaa=="),
        (*GOOD[:4], "X: x-amz-checksum-crc32: AAAAAA=="),
    ],
)
def test_another_answer_is_read(lines: tuple[str, ...]) -> None:
    """An answer that confirms nothing would settle a batch."""
    assert not glance(*lines)


def test_an_answer_with_a_body_is_read() -> None:
    """An error document behind a 200 would settle a batch."""
    assert not glance(*GOOD[:2], "Content-Length: 1", *GOOD[3:], body=b"x")


@given(st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=20))
def test_only_the_checksum_that_was_sent_confirms(text: str) -> None:
    """A wrong checksum would settle a damaged object."""
    assert glance(*GOOD[:4], f"x-amz-checksum-crc32: {text}") is (text.rstrip() == "AAAAAA==")
