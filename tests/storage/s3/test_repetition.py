"""Attempts at an object that may be in the store already."""

from __future__ import annotations

import base64
import hashlib
from contextlib import nullcontext
from typing import TYPE_CHECKING, Final

import pytest
import structlog.testing

from payloadd.config.parsers import S3Url
from payloadd.config.settings import load
from payloadd.errors import OperatorStoreError, TransientStoreError
from payloadd.storage.s3.store import S3Store, open_s3_store
from tests.support.objects import MEMBERS, bytes_of, gzipped, plain
from tests.support.store import FakeS3, Refusal, fake_s3
from tests.support.store_behaviours import (
    ACCESS_DENIED,
    INTERNAL_ERROR,
    NOT_IMPLEMENTED,
    PRECONDITION_FAILED,
    TAKE,
    All,
    Answer,
    ByMethod,
    Cut,
    InTurn,
    Locked,
    Rejects,
    Take,
)
from tests.support.store_in_memory import store_in_memory

if TYPE_CHECKING:
    from payloadd.errors import StoreError
    from payloadd.model.formats.api import EncodedObject
    from tests.support.store import Behaviour

OBJECT: Final = plain(b'{"a":1}\n')
PATH: Final = "/bucket/k"
WRONG: Final = "WRONG_ANSWER"
OTHER: Final = MEMBERS._replace(last="01890a5d-ac96-774b-bcce-b302099a8058")
NEW_BYTES: Final = gzipped(b'{"a":1} \n')
"""The object of the same batch by another version of a compression library."""
UNKNOWN_CONDITION: Final = Rejects("if-none-match", NOT_IMPLEMENTED)
UNSUPPORTED_CONDITION: Final = Rejects(
    "if-none-match", Refusal(400, "InvalidArgument", "Unsupported header 'If-None-Match'")
)


def statuses(fake: FakeS3) -> list[tuple[str, int]]:
    """Return method and status of each request."""
    return [(seen.method, seen.status) for seen in fake.seen]


async def repeated(behaviour: Behaviour, environ: dict[str, str], again: EncodedObject) -> FakeS3:
    """Store OBJECT, and then ``again`` as a repetition; return the store, which saw only that."""
    fake = FakeS3(port=1)
    store = await store_in_memory(fake, **environ)
    await store.put("k", OBJECT, MEMBERS, repeat=False)
    fake.seen.clear()
    fake.behaviour = behaviour
    await store.put("k", again, MEMBERS, repeat=True)
    return fake


@pytest.mark.parametrize(
    ("behaviour", "environ", "puts", "asked"),
    [
        (TAKE, {"S3_IF_NONE_MATCH": "off"}, 1, [("HEAD", 200)]),
        (ByMethod({"HEAD": Answer(403)}), {"S3_IF_NONE_MATCH": "off"}, 2,
         [("HEAD", 403), ("PUT", 200)]),
        (TAKE, {}, 1, [("PUT", 412), ("HEAD", 200)]),
        (TAKE, {"S3_IF_NONE_MATCH": "on"}, 1, [("PUT", 412), ("HEAD", 200)]),
        (ByMethod({"PUT": Answer(304)}), {}, 1, [("PUT", 304), ("HEAD", 200)]),
        (
            ByMethod({"PUT": Answer(304)}),
            {"S3_IF_NONE_MATCH": "on"},
            1,
            [("PUT", 304), ("HEAD", 200)],
        ),
        (ByMethod({"HEAD": Answer(403)}), {}, 1, [("PUT", 412), ("HEAD", 403)]),
        (ByMethod({"HEAD": Answer(405)}), {}, 1, [("PUT", 412), ("HEAD", 405)]),
        (ByMethod({"HEAD": Answer(404)}), {}, 2, [("PUT", 412), ("HEAD", 404), ("PUT", 200)]),
        (Take(conditional=False), {}, 2, [("PUT", 200)]),
        (UNKNOWN_CONDITION, {}, 1, [("PUT", 501), ("HEAD", 200)]),
        (UNSUPPORTED_CONDITION, {}, 1, [("PUT", 400), ("HEAD", 200)]),
        (Locked(), {"S3_IF_NONE_MATCH": "off"}, 1, [("HEAD", 200)]),
        (Locked(), {}, 1, [("PUT", 403), ("HEAD", 200)]),
        (Locked(Refusal(400, "InvalidRequest")), {}, 1, [("PUT", 400), ("HEAD", 200)]),
        (Locked(Refusal(409, "ObjectLocked")), {}, 1, [("PUT", 409), ("HEAD", 200)]),
    ],
)  # fmt: skip
async def test_a_repetition_of_a_stored_object_is_settled(
    behaviour: Behaviour,
    environ: dict[str, str],
    puts: int,
    asked: list[tuple[str, int]],
) -> None:
    """A batch whose answer was lost would be tried for ever, or have a second version."""
    fake = await repeated(behaviour, environ, NEW_BYTES)
    assert statuses(fake) == asked
    assert fake.puts[PATH] == puts


@pytest.mark.parametrize(
    ("behaviour", "environ", "asked"),
    [
        (TAKE, {"S3_IF_NONE_MATCH": "off"}, [("PUT", 200)]),
        (UNKNOWN_CONDITION, {}, [("PUT", 501), ("PUT", 200)]),
        (UNSUPPORTED_CONDITION, {}, [("PUT", 400), ("PUT", 200)]),
        (Locked(), {"S3_IF_NONE_MATCH": "off"}, [("PUT", 403), ("HEAD", 200)]),
    ],
)
async def test_a_repetition_with_the_same_bytes_replaces_the_object(
    behaviour: Behaviour, environ: dict[str, str], asked: list[tuple[str, int]]
) -> None:
    """Each repetition would cost a request more, and the right to read objects."""
    fake = await repeated(behaviour, environ, OBJECT)
    assert statuses(fake) == asked


async def test_an_object_of_another_batch_is_replaced_where_no_condition_is_sent() -> None:
    """The rows of the batch would be in no object."""
    fake = FakeS3(port=1)
    store = await store_in_memory(fake, S3_IF_NONE_MATCH="off")
    await store.put("k", OBJECT, OTHER, repeat=False)
    await store.put("k", NEW_BYTES, MEMBERS, repeat=True)
    assert statuses(fake)[1:] == [("HEAD", 200), ("PUT", 200)]
    assert fake.objects[PATH] == bytes_of(NEW_BYTES)


@pytest.mark.parametrize("condition", ["auto", "on", "off"])
async def test_an_object_that_is_no_batch_replaces_any_other(condition: str) -> None:
    """A watermark would keep its first value for ever."""
    fake = FakeS3(port=1)
    store = await store_in_memory(fake, S3_IF_NONE_MATCH=condition)
    await store.replace("k", OBJECT)
    await store.replace("k", NEW_BYTES)
    assert statuses(fake) == [("PUT", 200), ("PUT", 200)]
    assert fake.objects[PATH] == bytes_of(NEW_BYTES)
    fake.behaviour = ACCESS_DENIED
    with pytest.raises(OperatorStoreError, match="AccessDenied"):
        await store.replace("k", OBJECT)


async def test_a_first_attempt_has_no_condition_unless_it_is_always_on() -> None:
    """Stores that do not know If-None-Match would need two requests for each object."""
    for condition, sent in {"auto": None, "off": None, "on": "*"}.items():
        fake = FakeS3(port=1)
        store = await store_in_memory(fake, S3_IF_NONE_MATCH=condition)
        await store.put("k", OBJECT, MEMBERS, repeat=False)
        assert fake.seen[0].headers.get("if-none-match") == sent


@pytest.mark.parametrize(
    ("behaviour", "environ", "error", "code"),
    [
        (TAKE, {}, OperatorStoreError, "WRONG_ANSWER"),
        (Locked(), {"S3_IF_NONE_MATCH": "off"}, OperatorStoreError, "AccessDenied"),
        (ByMethod({"HEAD": INTERNAL_ERROR}), {}, TransientStoreError, "HTTP500"),
        (Refusal(409, "Conflict"), {}, TransientStoreError, "Conflict"),
        (Refusal(409, "Conflict"), {"S3_IF_NONE_MATCH": "off"}, OperatorStoreError, "Conflict"),
        (UNKNOWN_CONDITION, {"S3_IF_NONE_MATCH": "on"}, OperatorStoreError, "NotImplemented"),
        (UNSUPPORTED_CONDITION, {"S3_IF_NONE_MATCH": "on"}, OperatorStoreError, "InvalidArgument"),
        (
            ByMethod({"HEAD": Answer(404)}),
            {"S3_IF_NONE_MATCH": "on"},
            OperatorStoreError,
            "WRONG_ANSWER",
        ),
        (NOT_IMPLEMENTED, {}, OperatorStoreError, "NotImplemented"),
        (ByMethod({"PUT": Answer(304)}), {}, OperatorStoreError, "WRONG_ANSWER"),
        (
            ByMethod({"PUT": Answer(304), "HEAD": Answer(403)}),
            {},
            OperatorStoreError,
            "HTTP304",
        ),
        (
            ByMethod({"PUT": Answer(304)}),
            {"S3_IF_NONE_MATCH": "off"},
            OperatorStoreError,
            "HTTP304",
        ),
        (
            PRECONDITION_FAILED,
            {"S3_IF_NONE_MATCH": "off"},
            OperatorStoreError,
            "PreconditionFailed",
        ),
        (
            All((Locked(), ByMethod({"HEAD": Cut()}))),
            {"S3_IF_NONE_MATCH": "off"},
            OperatorStoreError,
            "AccessDenied",
        ),
    ],
)
async def test_another_object_under_the_key_is_a_trouble(
    behaviour: Behaviour, environ: dict[str, str], error: type[StoreError], code: str
) -> None:
    """The payloads of a batch would be settled although the store has other ones."""
    fake = FakeS3(port=1)
    store = await store_in_memory(fake, **environ)
    await store.put("k", OBJECT, OTHER, repeat=False)
    fake.behaviour = behaviour
    with pytest.raises(error) as caught:
        await store.put("k", OBJECT, MEMBERS, repeat=True)
    assert type(caught.value) is error
    assert caught.value.code == code
    assert fake.puts[PATH] == 1


@pytest.mark.parametrize("length", [None, 1])
async def test_an_object_without_metadata_is_recognized_by_its_length(length: int | None) -> None:
    """Batches of an earlier version would be a trouble after an upgrade."""
    fake = FakeS3(port=1)
    store = await store_in_memory(fake)
    await store.put("k", OBJECT, MEMBERS, repeat=False)
    fake.metadata[PATH].clear()
    fake.objects[PATH] = bytes_of(OBJECT)[:length]
    with nullcontext() if length is None else pytest.raises(OperatorStoreError, match=WRONG):
        await store.put("k", OBJECT, MEMBERS, repeat=True)
    assert fake.puts[PATH] == 1


async def test_other_bytes_of_a_version_without_metadata_are_replaced() -> None:
    """After an upgrade with another zlib, a compressed batch would wait for an operator."""
    fake = FakeS3(port=1)
    store = await store_in_memory(fake)
    await store.put("k", gzipped(b'{"a":1}\n'), MEMBERS, repeat=False)
    fake.metadata[PATH].clear()
    await store.put("k", NEW_BYTES, MEMBERS, repeat=True)
    assert fake.objects[PATH] == bytes_of(NEW_BYTES)
    # S3_IF_NONE_MATCH=on forbids to replace objects.
    fake.objects[PATH] = b"other bytes"
    fake.metadata[PATH].clear()
    store = await store_in_memory(fake, S3_IF_NONE_MATCH="on")
    with pytest.raises(OperatorStoreError, match=WRONG):
        await store.put("k", NEW_BYTES, MEMBERS, repeat=True)
    assert fake.objects[PATH] == b"other bytes"


@pytest.mark.parametrize("behaviour", [TAKE, Locked()], ids=["412", "403"])
async def test_an_object_that_is_not_compressed_has_to_be_whole(behaviour: Behaviour) -> None:
    """A server that was killed may keep the metadata of an object and a part of its bytes."""
    fake = FakeS3(behaviour, port=1)
    store = await store_in_memory(fake)
    await store.put("k", OBJECT, MEMBERS, repeat=False)
    fake.objects[PATH] = bytes_of(OBJECT)[:-1]
    with pytest.raises(OperatorStoreError):
        await store.put("k", OBJECT, MEMBERS, repeat=True)


@pytest.mark.parametrize("behaviour", [TAKE, Locked()], ids=["412", "403"])
async def test_the_object_of_a_batch_that_has_lost_members_is_kept(behaviour: Behaviour) -> None:
    """The batch would wait for ever, or its object lose payloads that the journal cannot read."""
    fake = FakeS3(behaviour, port=1)
    store = await store_in_memory(fake)
    await store.put("k", OBJECT, MEMBERS, repeat=False)
    rest = OTHER._replace(whole=False)
    await store.put("k", plain(b"1\n"), rest, repeat=True)
    assert fake.objects[PATH] == bytes_of(OBJECT)


async def test_a_store_that_does_not_know_conditions_is_remembered_and_logged_once() -> None:
    """Each repetition would need two requests."""
    fake = FakeS3(UNKNOWN_CONDITION, port=1)
    store = await store_in_memory(fake)
    with structlog.testing.capture_logs() as lines:
        for _ in range(3):
            await store.put("k", OBJECT, MEMBERS, repeat=True)
    assert [status for _, status in statuses(fake)] == [501, 200, 200, 200]
    assert [line["what"] for line in lines] == ["If-None-Match"]
    assert len(store.learnt()) == 1


async def test_the_content_md5_that_a_store_requires_is_sent_from_then_on() -> None:
    """Each object would need two requests in a bucket with object lock."""
    wish = Refusal(400, "InvalidRequest", "Content-MD5 HTTP header is required for Object Lock")
    fake = FakeS3(InTurn((wish, TAKE)), port=1)
    store = await store_in_memory(fake)
    with structlog.testing.capture_logs() as lines:
        for _ in range(2):
            await store.put("k", OBJECT, MEMBERS, repeat=False)
    sent = [seen.headers.get("content-md5") for seen in fake.seen]
    md5 = base64.b64encode(hashlib.md5(bytes_of(OBJECT), usedforsecurity=False).digest()).decode()
    assert sent == [None, md5, md5]
    assert [line["event"] for line in lines] == ["store_learnt"]


async def test_a_put_that_the_transport_repeated_is_asked_for() -> None:
    """An object that a closing connection has kept would be a trouble for ever (object lock)."""
    async with fake_s3() as fake:
        store = await store_at(fake)
        await store.put("other", OBJECT, MEMBERS, repeat=False)
        fake.behaviour = InTurn((Cut(keeps=True), All((Locked(ACCESS_DENIED), TAKE))))
        await store.put("k", OBJECT, MEMBERS, repeat=False)
        await store.aclose()
    assert statuses(fake)[1:] == [("PUT", 0), ("PUT", 403), ("HEAD", 200)]


@pytest.mark.parametrize(("answer", "code"), [(TAKE, "SentTwice"), (ACCESS_DENIED, "AccessDenied")])
async def test_an_object_that_the_transport_sent_twice_has_not_surely_replaced_the_other(
    answer: Behaviour, code: str
) -> None:
    """The first request may be carried out later, and replace what is written after this one."""
    async with fake_s3() as fake:
        store = await store_at(fake)
        await store.replace("k", OBJECT)
        fake.behaviour = InTurn((Cut(keeps=True), answer, TAKE))
        with pytest.raises((TransientStoreError, OperatorStoreError)) as caught:
            await store.replace("k", OBJECT)
        assert caught.value.code == code
        await store.replace("k", OBJECT)
        await store.aclose()
    assert [method for method, _ in statuses(fake)] == ["PUT"] * 4


async def store_at(fake: FakeS3) -> S3Store:
    """Return a store that uses sockets."""
    settings = load(fake.environ)
    assert isinstance(settings.store_url, S3Url)
    return await open_s3_store(settings, settings.store_url)


@pytest.mark.parametrize(
    ("behaviour", "expected"),
    [
        (TAKE, True),
        (ByMethod({"HEAD": Answer(403)}), False),
        (ByMethod({"HEAD": Answer(404)}), "WRONG_ANSWER"),
        (ByMethod({"HEAD": Answer(503)}), "HTTP503"),
    ],
)
async def test_a_probe_is_read_back(behaviour: Behaviour, expected: object) -> None:
    """`payloadd check` would praise a store that keeps nothing, or need more rights than a PUT."""
    fake = FakeS3(port=1)
    store = await store_in_memory(fake)
    await store.put("k", OBJECT, MEMBERS, repeat=False)
    fake.behaviour = behaviour
    if isinstance(expected, bool):
        assert await store.read_back("k", OBJECT, MEMBERS) is expected
        return
    with pytest.raises((OperatorStoreError, TransientStoreError)) as caught:
        await store.read_back("k", OBJECT, MEMBERS)
    assert caught.value.code == expected


async def test_another_probe_is_not_the_own_one() -> None:
    """`payloadd check` would find the object of another check."""
    fake = FakeS3(port=1)
    store = await store_in_memory(fake)
    await store.put("k", OBJECT, OTHER, repeat=False)
    with pytest.raises(OperatorStoreError, match="WRONG_ANSWER"):
        await store.read_back("k", OBJECT, MEMBERS)
