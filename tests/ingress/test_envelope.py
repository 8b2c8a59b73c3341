"""Envelopes say where payloads came from, on both ways in."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import pytest

from payloadd.config.envelope import envelope
from payloadd.ingress.auth import new_token
from payloadd.ingress.envelope import EnvelopeMaker, HeaderPatterns
from tests.ingress.rig import Rig, post, running

if TYPE_CHECKING:
    from pathlib import Path

_JSON: Final = "Content-Type: application/json"
_NDJSON: Final = "Content-Type: application/x-ndjson"
_ALL: Final = "received_at,client,name,stream,headers:ce-*,headers:x-event"


async def stored(rig: Rig, *requests: bytes) -> list[list[bytes]]:
    """Send the requests on one connection, and return what was stored of each."""
    rig.intake.taken.clear()
    async with rig.wire() as wire:
        for request in requests:
            await wire.send(request)
            answer = await wire.answer()
            assert answer.status == 202, answer.body
    return rig.intake.taken


@pytest.mark.usefixtures("each_way")
async def test_the_envelope_has_the_chosen_members_in_their_order() -> None:
    """Readers could not rely on the members, or would find other payloads than were sent."""
    payload = b'{"b": 1.0,  "a":"\\u00e4"}'
    headers = ("CE-Source: /a", "X-Event: caf\u00e9", "Host2: no", "ce-id: 7")
    async with running(ENVELOPE=_ALL) as rig:
        before = datetime.now(UTC) - timedelta(milliseconds=1)
        found = await stored(
            rig,
            post(b"[" + payload + b",2]", _JSON, *headers),
            post(payload + b"\n2\n", _NDJSON, *headers),
            post(payload, _JSON, *headers, path="/v1/payload"),
        )
        after = datetime.now(UTC)
    assert [len(lines) for lines in found] == [2, 2, 1]
    for lines in found:
        assert lines[0].endswith(b',"payload":' + payload + b"}")
        for line in lines:
            document: dict[str, Any] = json.loads(line)
            assert [*document] == ["received_at", "client", "name", "stream", "headers", "payload"]
            time = document.pop("received_at")
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", time)
            assert before <= datetime.fromisoformat(time) <= after
            assert document.pop("payload") in (json.loads(payload), 2)
            assert document == {
                "client": "127.0.0.1",
                "name": None,
                "stream": "default",
                "headers": {"ce-source": "/a", "x-event": "caf\u00e9", "ce-id": "7"},
            }
            assert [*document["headers"]] == ["ce-source", "x-event", "ce-id"]


@pytest.mark.usefixtures("each_way")
async def test_headers_are_joined_decoded_and_escaped() -> None:
    """A header could break the line, forge a member or get lost."""
    async with running(ENVELOPE="headers:X-*") as rig:
        request = post(
            b"[1]", _JSON, "X-A: 1", "x-a: 2", 'X-Quote: a"b\\c', "X-Tab: a\tb", "X-Utf8: \u0085"
        ).replace(b"x-a: 2", b"x-a: 2\r\nX-Latin: caf\xe9")
        ((line,),) = await stored(rig, request)
    assert json.loads(line)["headers"] == {
        "x-a": "1, 2",
        "x-latin": "caf\u00e9",
        "x-quote": 'a"b\\c',
        "x-tab": "a\tb",
        "x-utf8": "\u0085",
    }
    assert b"\\u0085" in line
    assert b'"headers":{"x-a"' in line


@pytest.mark.usefixtures("each_way")
async def test_credentials_are_never_stored() -> None:
    """A reader of the objects could post as the client, or take over its session."""
    secret = "hunter2-hunter2"
    names = "Authorization Cookie Proxy-Authorization X-Forwarded-Authorization Set-Cookie"
    lines = [f"{name}: {secret}" for name in (*names.split(), "X-Api-Key", "X-Auth-Token")]
    async with running(ENVELOPE="headers:*,headers:x-api-key,name") as rig:
        ((line,),) = await stored(rig, post(b"[1]", _JSON, *lines))
    document = json.loads(line)
    assert document["headers"].pop("x-api-key") == secret  # the operator has asked for it
    assert secret not in json.dumps(document)
    assert document["headers"]["content-type"] == "application/json"
    assert document["name"] is None


@pytest.mark.usefixtures("each_way")
async def test_the_name_is_that_of_the_token(tmp_path: Path) -> None:
    """Readers could not tell which client has sent a payload."""
    tokens = tmp_path / "tokens"
    token, line = new_token("shop@1")
    tokens.write_text(line + "\n")
    async with running(ENVELOPE="name,headers:*", AUTH_TOKENS=str(tokens)) as rig:
        ((stored_line,),) = await stored(rig, post(b"[1]", _JSON, f"Authorization: Bearer {token}"))
    assert json.loads(stored_line)["name"] == "shop@1"
    assert token.encode() not in stored_line


@pytest.mark.usefixtures("each_way")
async def test_the_members_that_are_not_chosen_are_left_out() -> None:
    """Readers would get more than the operator has allowed."""
    async with running(ENVELOPE="headers:x-none,stream") as rig:
        ((line,),) = await stored(rig, post(b"[1]"))
    assert line == b'{"stream":"default","headers":{},"payload":1}'


@pytest.mark.usefixtures("each_way")
async def test_large_bodies_get_the_same_envelope() -> None:
    """The payloads of large requests would be stored without it."""
    body = b"[" + b",".join(b"%d" % number for number in range(9000)) + b"]"
    async with running(ENVELOPE="stream,headers:x-a") as rig:
        (lines,) = await stored(rig, post(body, _JSON, "X-A: 1"))
    prefix = b'{"stream":"default","headers":{"x-a":"1"},"payload":'
    assert lines == [prefix + b"%d}" % number for number in range(9000)]


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("payloads", [100, 9000], ids=["loop", "process"])
async def test_the_envelopes_count_towards_max_length(payloads: int) -> None:
    """A few KiB of headers and many small payloads would fill the memory and the disk."""
    body = b"[" + b",".join([b"1"] * payloads) + b"]"
    length = str(payloads * 100)
    async with running(ENVELOPE="headers:x-a", MAX_LENGTH=length) as rig, rig.wire() as wire:
        await wire.send(post(body, _JSON, "X-A: 1"))
        assert (await wire.answer()).status == 202
        await wire.send(post(body, _JSON, "X-A: " + "y" * 99))
        answer = await wire.answer()
        assert (answer.status, answer.document["code"]) == (413, "TOO_LARGE")
        assert "ENVELOPE" in answer.document["detail"]
        assert len(rig.intake.taken) == 1


@pytest.mark.usefixtures("each_way")
async def test_a_small_body_with_large_envelopes_does_not_block_the_loop() -> None:
    """Megabytes would be copied in the event loop; the decoder process has to do it."""
    async with running(ENVELOPE="headers:x-a") as rig:
        value = "y" * 7000
        (lines,) = await stored(rig, post(b"[" + b"1," * 199 + b"1]", _JSON, f"X-A: {value}"))
        assert rig.submitter is not None
        assert rig.submitter.large_bodies.process is not None
    assert len(lines) == 200
    assert json.loads(lines[-1]) == {"headers": {"x-a": value}, "payload": 1}


def test_patterns_match_whole_names() -> None:
    """Headers would be stored that no pattern names."""
    patterns = HeaderPatterns(["ce-*", "x-*-event", "a.b", "x-session-token"])
    assert [*map(patterns.matches, ["ce-", "ce-id", "x-github-event", "a.b"])] == [True] * 4
    names = [
        "xce-id",
        "x-event",
        "axb",
        "ce-authorization",
        "ce-token",
        "cookie",
        "x-github-eventx",
    ]
    assert [*map(patterns.matches, names)] == [False] * 7
    assert patterns.matches("x-session-token")  # written out


def test_the_time_has_milliseconds() -> None:
    """Readers could not sort what came within a second."""
    times = iter([1_700_000_000_007_999_999, 1_700_000_000_999_999_999, 1_700_000_001_000_000_000])
    maker = EnvelopeMaker(envelope("received_at"), lambda: next(times))
    found = [maker.make(lambda: None, None, "default", None).prefix for _ in range(3)]
    assert found == [
        b'{"received_at":"2023-11-14T22:13:20.007Z","payload":',
        b'{"received_at":"2023-11-14T22:13:20.999Z","payload":',
        b'{"received_at":"2023-11-14T22:13:21.000Z","payload":',
    ]
