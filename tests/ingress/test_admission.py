"""Tokens, rates and the addresses of clients, as a client sees them."""

from __future__ import annotations

import hashlib
import json
from base64 import b64encode
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import trio
import trustme

from tests.ingress import rig as rigs
from tests.ingress.rig import COLLECTION, SOON, post

if TYPE_CHECKING:
    from collections.abc import MutableMapping
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from hypercorn.trio.tcp_server import TCPServer

    from tests.ingress.rig import Rig
    from tests.ingress.tls_files import Files

pytestmark = pytest.mark.usefixtures("each_way")

TYPE = "Content-Type: application/json"
TOKEN = "a-token-of-the-web-shop"


def running(**settings: str) -> AbstractAsyncContextManager[Rig]:
    """Run the public app with these settings."""
    return rigs.running(None, max_connections=50, options=None, **settings)


def write_tokens(folder: Path, **tokens: str) -> dict[str, str]:
    """Write a file of tokens, by the name (and the streams) of their clients; return the setting.

    Two underscores stand for the colon behind the name.
    """
    path = folder / "tokens"
    lines = []
    for name, token in tokens.items():
        client, _, streams = name.partition("__")
        digest = hashlib.sha256(token.encode()).hexdigest()
        lines.append(":".join((client, digest, streams) if streams else (client, digest)) + "\n")
    path.write_text("".join(lines))
    return {"AUTH_TOKENS": str(path)}


def with_token(token: str = TOKEN, *headers: str, path: str = "/v1/payloads") -> bytes:
    """Return a POST with a bearer token."""
    return post(COLLECTION, TYPE, f"Authorization: Bearer {token}", *headers, path=path)


async def test_a_post_needs_a_known_token(tmp_path: Path, handed_over: list[TCPServer]) -> None:
    """Every client that reaches the port could write into the bucket."""
    basic = b64encode(b"shop:" + TOKEN.encode()).decode()
    good = (f"Bearer {TOKEN}", f"bearer {TOKEN}", f"Basic {basic}")
    async with running(**write_tokens(tmp_path, web=TOKEN)) as rig:
        for path in ("/v1/payloads", "/v1/payload/"):
            for authorization in (None, "", "Bearer wrong", f"Bearer {TOKEN}x", f"Token {TOKEN}"):
                lines = () if authorization is None else (f"Authorization: {authorization}",)
                async with rig.wire() as wire:
                    await wire.send(post(COLLECTION, TYPE, *lines, path=path))
                    answer = await wire.answer()
                    assert (answer.status, answer.document["code"]) == (401, "UNAUTHENTICATED")
                    assert answer.headers["www-authenticate"].startswith("bearer ")
                    assert answer.headers["connection"] == "close"
        assert rig.intake.taken == []
        async with rig.wire() as wire:
            for authorization in good:
                await wire.send(post(COLLECTION, TYPE, f"Authorization: {authorization}"))
                assert (await wire.answer()).status == 202
        assert len(rig.intake.taken) == len(good)
        async with rig.client() as client:
            assert (await client.get("/healthz")).status_code == 200
            assert (await client.options("/v1/payloads")).status_code == 204
    if rig.fast_path is not None:
        assert not handed_over


async def test_a_refusal_comes_before_the_body(tmp_path: Path) -> None:
    """A client without a token could make the daemon read and keep bodies."""
    async with running(**write_tokens(tmp_path, web=TOKEN)) as rig, rig.wire() as wire:
        await wire.send(b"POST /v1/payloads HTTP/1.1\r\nHost: x\r\nContent-Length: 999999\r\n\r\n")
        with trio.fail_after(SOON):
            assert (await wire.answer()).status == 401


async def test_a_token_writes_to_its_streams_only(
    tmp_path: Path, handed_over: list[TCPServer]
) -> None:
    """The token of one team would write among the payloads of others, on a kept connection too."""
    settings = write_tokens(tmp_path, web=TOKEN, ci__clicks="c", main__default="m")
    paths = ("", "/default", "/clicks", "/errors", "/clicks/")
    allowed = {
        TOKEN: paths, "c": ("/clicks", "/clicks/"), "m": ("", "/default"),
    }  # fmt: skip
    async with running(STREAMS="clicks,errors", **settings) as rig, rig.wire() as wire:
        for path in paths:
            for token in (TOKEN, "c", "m"):
                # Without a body a refused request keeps its connection.
                request = post(
                    b"", TYPE, f"Authorization: Bearer {token}", path=f"/v1/payloads{path}"
                )
                await wire.send(request)
                answer = await wire.answer()
                assert "connection" not in answer.headers
                code = "MALFORMED" if path in allowed[token] else "FORBIDDEN"
                assert answer.document["code"] == code
                if code == "FORBIDDEN":
                    assert answer.status == 403
                    assert {"c": "clicks", "m": "default"}[token] in answer.document["detail"]
        assert rig.intake.taken == []
        for path, number in (("", 0), ("/clicks", 1), ("/errors", 2), ("/default", 0)):
            await wire.send(with_token(path=f"/v1/payloads{path}"))
            assert (await wire.answer()).status == 202
            assert rig.intake.streams[-1] == number
    assert len(handed_over) == (rig.fast_path is None)


async def test_a_forbidden_stream_is_refused_before_the_body(tmp_path: Path) -> None:
    """A client could make the daemon read and keep bodies of streams that are not its own."""
    settings = write_tokens(tmp_path, ci__clicks="c")
    head = "POST /v1/payloads%s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer c\r\n%s\r\n\r\n"
    async with running(STREAMS="clicks,errors", **settings) as rig:
        for path in ("", "/errors", "/another", "/clic%4bs"):
            for length in ("Content-Length: 9999", "Transfer-Encoding: chunked"):
                async with rig.wire() as wire:
                    await wire.send((head % (path, length)).encode())
                    with trio.fail_after(SOON):
                        answer = await wire.answer()
                assert (answer.status, answer.headers["connection"]) == (403, "close")
                assert answer.document["code"] == "FORBIDDEN"


async def test_names_of_streams_are_not_told_to_clients_without_a_token(tmp_path: Path) -> None:
    """Anybody could find out which streams there are."""
    async with running(STREAMS="clicks", **write_tokens(tmp_path, web=TOKEN)) as rig:
        answers = []
        for path in ("/v1/payloads/clicks", "/v1/payloads/clocks"):
            async with rig.wire() as wire:
                await wire.send(post(path=path))
                answers.append(await wire.answer())
        assert [answer.status for answer in answers] == [401, 401]
        assert answers[0].document == answers[1].document


async def test_streams_of_tokens_that_do_not_exist_are_a_warning(
    tmp_path: Path, log_lines: list[MutableMapping[str, Any]]
) -> None:
    """A typing error would be found by refused requests, or a removed stream stop the daemon."""
    settings = write_tokens(tmp_path, web=TOKEN, ci__clicks="c", old__gone="o")
    async with running(STREAMS="clicks,errors", **settings) as rig, rig.wire() as wire:
        await wire.send(with_token("o", path="/v1/payloads/gone"))
        answer = await wire.answer()
        assert (answer.status, answer.document["code"]) == (404, "UNKNOWN_STREAM")
        assert rig.admission is not None
        assert rig.admission.tokens is not None
        rig.admission.tokens.warn_of_unknown_streams()
        rig.admission.reload()
        write_tokens(tmp_path, web=TOKEN)
        rig.admission.reload()
    lines = [line for line in log_lines if line["event"] != "request_refused"]
    warning, reloaded, again, _ = lines
    assert warning == again
    assert (warning["event"], warning["log_level"]) == ("tokens_of_unknown_streams", "warning")
    assert (warning["clients"], warning["streams"]) == (["old"], ["gone"])
    assert reloaded["event"] == "tokens_reloaded"


async def test_idempotency_keys_are_per_stream(tmp_path: Path) -> None:
    """A sender whose keys are offsets in its files would lose the second of two streams."""
    settings = write_tokens(tmp_path, a="1", clicks="2")
    async with running(STREAMS="clicks,errors", **settings) as rig, rig.wire() as wire:
        for token in ("1", "2"):
            for stream in ("", "/clicks", "/errors", "/default"):
                await wire.send(
                    with_token(token, "Idempotency-Key: k", path=f"/v1/payloads{stream}")
                )
                assert (await wire.answer()).status == 202
        keys = rig.intake.keys
        assert len(set(keys)) == 6
        assert (keys[0], keys[4]) == (keys[3], keys[7])


async def test_keys_of_streams_are_no_keys_of_clients() -> None:
    """A key of one stream could be the key of a client with the name of the stream."""
    async with running(STREAMS="clicks") as rig, rig.wire() as wire:
        for path in ("/v1/payloads/clicks", "/v1/payloads"):
            await wire.send(post(COLLECTION, TYPE, "Idempotency-Key: k", path=path))
            assert (await wire.answer()).status == 202
        assert rig.intake.keys == ["\0clicks\0k", "k"]


async def test_idempotency_keys_are_per_client(tmp_path: Path) -> None:
    """A client could find out the keys of another one, or use them up."""
    async with running(**write_tokens(tmp_path, a="1", b="2")) as rig, rig.wire() as wire:
        for token in ("1", "2", "1"):
            await wire.send(with_token(token, "Idempotency-Key: k"))
            assert (await wire.answer()).status == 202
        first, second, third = rig.intake.keys
        assert first == third != second
        assert "k" not in (first, second)


async def test_large_bodies_keep_the_client_of_their_key(tmp_path: Path) -> None:
    """A large request and its small repetition would have different keys."""
    large = b'{"payloads":["%s"]}' % (b"x" * 600_000)
    async with running(**write_tokens(tmp_path, a="1")) as rig, rig.wire() as wire:
        for body in (large, COLLECTION):
            await wire.send(post(body, TYPE, "Authorization: Bearer 1", "Idempotency-Key: k"))
            assert (await wire.answer()).status == 202
        assert len(set(rig.intake.keys)) == 1


async def test_keys_of_clients_without_names_stay_as_they_are() -> None:
    """After an upgrade, a repeated request would be stored a second time."""
    async with running(RATE_LIMIT="9/s") as rig, rig.wire() as wire:
        await wire.send(post(COLLECTION, TYPE, "Idempotency-Key: k"))
        assert (await wire.answer()).status == 202
        assert rig.intake.keys == ["k"]


async def test_tokens_are_read_again(
    tmp_path: Path, log_lines: list[MutableMapping[str, Any]]
) -> None:
    """A token that was taken out would work until the next restart."""
    async with running(**write_tokens(tmp_path, web=TOKEN)) as rig, rig.wire() as wire:
        assert rig.admission is not None
        await wire.send(with_token())
        assert (await wire.answer()).status == 202
        write_tokens(tmp_path, web="new")
        rig.admission.reload()
        await wire.send(with_token("new"))
        assert (await wire.answer()).status == 202
        await wire.send(with_token())
        assert (await wire.answer()).status == 401
    assert TOKEN not in json.dumps(log_lines, default=str)


async def test_no_answer_and_no_log_line_shows_a_token(
    tmp_path: Path, log_lines: list[MutableMapping[str, Any]]
) -> None:
    """A user that shares a log or an error would give a token away."""
    async with running(**write_tokens(tmp_path, web=TOKEN)) as rig:
        for sent in (
            with_token(TOKEN + "-wrong"),
            with_token(TOKEN, path="/nowhere"),
            with_token(TOKEN, "Content-Encoding: br"),
            with_token(TOKEN, "Idempotency-Key: a b"),
            with_token(TOKEN, "Transfer-Encoding: chunked"),
        ):
            async with rig.wire() as wire:
                await wire.send(sent)
                answer = await wire.answer()
                assert answer.status >= 400
                assert TOKEN not in f"{answer.headers}{answer.body!r}"
    assert len(log_lines) == 5
    assert TOKEN not in json.dumps(log_lines, default=str)


# --- rates -------------------------------------------------------------------------------------


async def test_a_client_above_its_rate_gets_a_429(tmp_path: Path) -> None:
    """One client could use up what is there for all."""
    settings = {**write_tokens(tmp_path, a="1", b="2"), "RATE_LIMIT": "1/m burst 2"}
    async with running(**settings) as rig:
        for token, statuses in (("1", [202, 202, 429]), ("2", [202])):
            async with rig.wire() as wire:
                for status in statuses:
                    await wire.send(with_token(token))
                    answer = await wire.answer()
                    assert answer.status == status
        async with rig.wire() as wire:
            await wire.send(with_token("1"))
            answer = await wire.answer()
            assert answer.document["code"] == "RATE_LIMITED"
            assert 50 <= int(answer.headers["retry-after"]) <= 60
            assert "RATE_LIMIT" in answer.document["detail"]


async def test_without_names_the_rate_is_per_address() -> None:
    """All clients together would have the rate of one."""
    async with running(RATE_LIMIT="1/m") as rig:
        for status in (202, 429):
            async with rig.wire() as wire:
                await wire.send(post())
                assert (await wire.answer()).status == status


# --- proxies -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "header"),
    [
        ("x-forwarded-for", "X-Forwarded-For: 6.6.6.6, {}"),
        ("forwarded", "Forwarded: for=6.6.6.6;proto=http, for={}"),
    ],
)
async def test_the_address_that_a_trusted_proxy_states_is_the_clients(
    mode: str, header: str, log_lines: list[MutableMapping[str, Any]]
) -> None:
    """Behind a proxy all clients would share one rate, and the log would show the proxy."""
    settings = {
        "TRUSTED_PROXIES": "127.0.0.0/8", "CLIENT_ADDRESS": mode, "RATE_LIMIT": "1/m",
    }  # fmt: skip
    async with running(**settings) as rig:
        for address, status in (("1.2.3.4", 202), ("4.3.2.1", 202), ("1.2.3.4", 429)):
            async with rig.wire() as wire:
                await wire.send(post(COLLECTION, TYPE, header.format(address)))
                assert (await wire.answer()).status == status
    (line,) = log_lines
    assert (line["code"], line["client"]) == ("RATE_LIMITED", "1.2.3.4")


async def test_other_peers_cannot_state_an_address(
    log_lines: list[MutableMapping[str, Any]],
) -> None:
    """A client could choose another address for each request, and so have no rate."""
    settings = {
        "TRUSTED_PROXIES": "10.0.0.0/8", "CLIENT_ADDRESS": "x-forwarded-for", "RATE_LIMIT": "1/m",
    }  # fmt: skip
    async with running(**settings) as rig:
        for address, status in (("1.2.3.4", 202), ("4.3.2.1", 429)):
            async with rig.wire() as wire:
                await wire.send(post(COLLECTION, TYPE, f"X-Forwarded-For: {address}"))
                assert (await wire.answer()).status == status
    assert log_lines[0]["client"] == "127.0.0.1"


async def test_the_connections_of_a_trusted_proxy_are_not_counted() -> None:
    """All clients behind a proxy together would have the connections of one."""
    settings = {
        "TRUSTED_PROXIES": "127.0.0.1", "CLIENT_ADDRESS": "x-forwarded-for",
        "MAX_CONNECTIONS_PER_CLIENT": "1",
    }  # fmt: skip
    async with running(**settings) as rig, rig.wire() as first, rig.wire() as second:
        for wire in (first, second):
            await wire.send(post())
            assert (await wire.answer()).status == 202


# --- certificates ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("common_name", "names", "expected"),
    [("shop", ("x.example",), "shop\0k"), (None, ("x.example",), "x.example\0k")],
)
async def test_the_name_in_a_certificate_is_the_clients(
    files: Files, common_name: str | None, names: tuple[str, ...], expected: str
) -> None:
    """Clients with certificates could use up each other's keys and rates."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(files.folder / "clients.pem")
    certificate = authority.issue_cert(*names, common_name=common_name)
    context = files.client_context()
    with certificate.private_key_and_cert_chain_pem.tempfile() as path:
        context.load_cert_chain(path)
    async with files.running(TLS_CLIENT_CA=str(files.folder / "clients.pem")) as rig:
        async with files.wire(rig, context) as wire:
            await wire.send(post(COLLECTION, TYPE, "Idempotency-Key: k"))
            assert (await wire.answer()).status == 202
        async with httpx.AsyncClient(verify=context, http2=True) as client:
            url = rig.url.replace("http:", "https:") + "/v1/payloads"
            headers = {"Content-Type": "application/json", "Idempotency-Key": "k"}
            answer = await client.post(url, content=COLLECTION, headers=headers)
            assert (answer.status_code, answer.http_version) == (202, "HTTP/2")
        assert rig.intake.keys == [expected, expected]
