"""The transport with TLS, and with the TLS and proxy variables of the environment."""

from __future__ import annotations

import ssl
import subprocess
from contextlib import asynccontextmanager, nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING

import httpx
import pytest
import trio
import trustme

from payloadd.errors import OperatorStoreError, SettingsError
from payloadd.storage.api import open_store
from payloadd.storage.http1.transport import ProxyTransport, TrioTransport, open_transport
from tests.support.faults import STORED, fault_server, in_turn
from tests.support.objects import MEMBERS, bytes_of, plain

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from payloadd.config.settings import Settings

LARGE = bytes(range(256)) * 4096 * 4
OBJECT = plain(b"{}\n")
OK = b'HTTP/1.1 200 OK\r\nETag: "0"\r\nContent-Length: 0\r\n\r\n'
PROXIES = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"]


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the proxies of the machine."""
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def authority(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> trustme.CA:
    """Return an authority that the environment declares as trusted."""
    made = trustme.CA()
    made.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    return made


class TlsServer:
    """A server that sends ``answer`` to each request, and keeps names, protocols and bodies."""

    def __init__(self, certificate: trustme.LeafCert) -> None:
        self.port = 0
        self.connections = 0
        self.names: list[str | None] = []
        self.protocols: list[str | None] = []
        self.bodies: list[bytes] = []
        self.answer = OK
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._context.set_alpn_protocols(["h2", "http/1.1"])
        self._context.sni_callback = lambda _socket, name, _context: self.names.append(name)
        certificate.configure_cert(self._context)

    async def handle(self, raw: trio.SocketStream) -> None:
        """Serve one connection."""
        self.connections += 1
        stream = trio.SSLStream(raw, self._context, server_side=True, https_compatible=True)
        try:
            await stream.do_handshake()
            self.protocols.append(stream.selected_alpn_protocol())
            data = b""
            while chunk := await stream.receive_some(65536):
                data += chunk
                head, _, body = data.partition(b"\r\n\r\n")
                if f"content-length: {len(body)}\r\n".encode() in head.lower() + b"\r\n":
                    self.bodies.append(body)
                    data = b""
                    await stream.send_all(self.answer)
        except trio.BrokenResourceError:
            return  # a client that does not trust the certificate


@asynccontextmanager
async def tls_server(certificate: trustme.LeafCert) -> AsyncIterator[TlsServer]:
    """Run a server on 127.0.0.1 with this certificate."""
    server = TlsServer(certificate)
    async with trio.open_nursery() as nursery:
        serve = partial(trio.serve_tcp, server.handle, 0, host="127.0.0.1")
        listeners: list[trio.SocketListener] = await nursery.start(serve)
        server.port = listeners[0].socket.getsockname()[1]
        yield server
        nursery.cancel_scope.cancel()


async def test_bodies_of_any_size_arrive_through_tls(authority: trustme.CA) -> None:
    """No object could be stored in S3 itself, or large objects would be cut."""
    async with (
        tls_server(authority.issue_cert("localhost")) as server,
        open_transport(1, 30.0, secure=True) as made,
    ):
        url = f"https://localhost:{server.port}"
        for body in (b"small", LARGE, b""):
            with trio.fail_after(60):
                response = await made.handle_async_request(httpx.Request("PUT", url, content=body))
            assert response.is_success

    assert server.bodies == [b"small", LARGE, b""]
    assert (server.connections, server.names, server.protocols) == (1, ["localhost"], ["http/1.1"])


async def test_a_second_response_in_tls_buffers_is_not_used(authority: trustme.CA) -> None:
    """The next object would count as stored although the server has not received it."""
    # A TLS record holds 16 KiB, so the second response begins the second record. Both are sent in
    # one write: when the first is read, TLS holds both and the socket is empty.
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 16000\r\nX-Fill: "
    first = head.ljust(2**14 - 16_000 - 4, b"x") + b"\r\n\r\n" + bytes(16_000)
    async with (
        tls_server(authority.issue_cert("localhost")) as server,
        open_transport(1, 30.0, secure=True) as made,
    ):
        server.answer = first + OK
        url = f"https://localhost:{server.port}"
        for body in (b"1", b"2"):
            with trio.fail_after(60):
                response = await made.handle_async_request(httpx.Request("PUT", url, content=body))
            assert (response.is_success, len(await response.aread())) == (True, 16_000)

    assert (server.connections, server.bodies) == (2, [b"1", b"2"])


@pytest.mark.parametrize("name", ["elsewhere.example", "127.0.0.2"])
async def test_a_certificate_for_another_name_is_an_operator_error(
    make_settings: Callable[..., Settings], authority: trustme.CA, name: str
) -> None:
    """Payloads would be sent to an attacker between the daemon and the store."""
    async with tls_server(authority.issue_cert(name)) as server:
        settings = make_settings(AWS_ENDPOINT_URL=f"https://127.0.0.1:{server.port}")
        async with open_store(settings) as store:
            with pytest.raises(OperatorStoreError, match=r"127\.0\.0\.1") as caught:
                await store.put("k", OBJECT, MEMBERS, repeat=False)

    assert caught.value.code == "CertificateError"
    assert server.bodies == []


async def test_an_untrusted_authority_is_an_operator_error(
    make_settings: Callable[..., Settings],
) -> None:
    """Payloads would be sent to an attacker with a self-signed certificate."""
    async with tls_server(trustme.CA().issue_cert("127.0.0.1")) as server:
        settings = make_settings(AWS_ENDPOINT_URL=f"https://127.0.0.1:{server.port}")
        async with open_store(settings) as store:
            with pytest.raises(OperatorStoreError, match="CertificateError"):
                await store.put("k", OBJECT, MEMBERS, repeat=False)

    assert server.bodies == []


@pytest.fixture
def private(tmp_path: Path) -> trustme.CA:
    """Return an authority that the machine does not trust; its certificate is ``private.pem``."""
    made = trustme.CA()
    made.cert_pem.write_to_path(tmp_path / "private.pem")
    return made


def hashed_folder(tmp_path: Path) -> Path:
    """Return a folder with the authority under the name that OpenSSL looks for."""
    folder = tmp_path / "authorities"
    folder.mkdir()
    file = tmp_path / "private.pem"
    command = ["openssl", "x509", "-noout", "-hash", "-in", str(file)]
    name = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    (folder / f"{name}.0").write_bytes(file.read_bytes())
    return folder


@pytest.mark.parametrize("form", ["file", "folder", "document", "profile"])
async def test_aws_ca_bundle_names_the_authorities(
    make_settings: Callable[..., Settings],
    no_aws: Path,
    private: trustme.CA,
    tmp_path: Path,
    form: str,
) -> None:
    """A private S3 whose certificate every AWS tool trusts would be refused."""
    bundle = str(tmp_path / "private.pem")
    names = {"AWS_CA_BUNDLE": bundle}
    if form == "folder":
        names = {"AWS_CA_BUNDLE": str(await trio.to_thread.run_sync(hashed_folder, tmp_path))}
    elif form == "document":
        names = {"AWS_CA_BUNDLE": private.cert_pem.bytes().decode()}
    elif form == "profile":
        (no_aws / "config").write_text(f"[default]\nca_bundle = {bundle}\n")
        names = {"AWS_PROFILE": "default"}
    async with tls_server(private.issue_cert("127.0.0.1")) as server:
        settings = make_settings(AWS_ENDPOINT_URL=f"https://127.0.0.1:{server.port}", **names)
        async with open_store(settings) as store:
            await store.put("k", OBJECT, MEMBERS, repeat=False)

    assert server.bodies == [bytes_of(OBJECT)]


async def test_aws_ca_bundle_replaces_the_usual_authorities(
    make_settings: Callable[..., Settings],
    authority: trustme.CA,
    private: trustme.CA,
    tmp_path: Path,
) -> None:
    """A network that allows its own authority alone would accept every public certificate."""
    del private
    async with tls_server(authority.issue_cert("127.0.0.1")) as server:
        settings = make_settings(
            AWS_ENDPOINT_URL=f"https://127.0.0.1:{server.port}",
            AWS_CA_BUNDLE=str(tmp_path / "private.pem"),
        )
        async with open_store(settings) as store:
            with pytest.raises(OperatorStoreError, match="CertificateError"):
                await store.put("k", OBJECT, MEMBERS, repeat=False)


@pytest.mark.parametrize("content", [None, "no certificate"])
async def test_a_ca_bundle_that_cannot_be_read_stops_the_start(
    make_settings: Callable[..., Settings], tmp_path: Path, content: str | None
) -> None:
    """An operator would look for a fault in the server's certificate."""
    bundle = tmp_path / "bundle.pem"
    if content is not None:
        bundle.write_text(content)
    settings = make_settings(AWS_ENDPOINT_URL="https://s3.example", AWS_CA_BUNDLE=str(bundle))
    with pytest.raises(SettingsError, match=r"AWS_CA_BUNDLE: .*bundle\.pem"):
        async with open_store(settings):
            raise AssertionError


async def test_a_transport_without_https_trusts_no_certificate(authority: trustme.CA) -> None:
    """Payloads could be sent to a server whose certificate is not verified."""
    async with (
        tls_server(authority.issue_cert("127.0.0.1")) as server,
        open_transport(1, 30.0, secure=False) as made,
    ):
        with pytest.raises(httpx.ConnectError):
            await made.handle_async_request(
                httpx.Request("PUT", f"https://127.0.0.1:{server.port}", content=b"x")
            )

    assert server.bodies == []


async def test_a_missing_file_of_certificates_stops_the_start(
    make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon would start, accept payloads, and store none."""
    monkeypatch.setenv("SSL_CERT_FILE", "/nonexistent")
    with pytest.raises(SettingsError, match="TLS"):
        async with open_store(make_settings()):
            raise AssertionError


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        ({}, TrioTransport),
        ({"NO_PROXY": "example.com"}, TrioTransport),
        ({"HTTPS_PROXY": ""}, TrioTransport),
        ({"HTTPS_PROXY": "http://127.0.0.1:9", "NO_PROXY": "*"}, TrioTransport),
        ({"HTTPS_PROXY": "http://127.0.0.1:9"}, ProxyTransport),
        ({"https_proxy": "http://127.0.0.1:9"}, ProxyTransport),
        ({"HTTP_PROXY": "127.0.0.1:9"}, ProxyTransport),
        ({"ALL_PROXY": "http://127.0.0.1:9"}, ProxyTransport),
    ],
)
async def test_proxy_variables_choose_the_transport(
    monkeypatch: pytest.MonkeyPatch, names: dict[str, str], kind: type[httpx.AsyncBaseTransport]
) -> None:
    """A daemon behind a proxy would not reach the store."""
    for name, text in names.items():
        monkeypatch.setenv(name, text)
    async with open_transport(1, 1.0, secure=False) as made:
        assert type(made) is kind


@pytest.mark.parametrize("exempt", [False, True])
async def test_requests_go_through_the_proxy_unless_no_proxy_names_the_host(
    make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch, *, exempt: bool
) -> None:
    """A daemon behind a proxy would not reach the store, or would bypass the proxy."""
    ok = in_turn(STORED)
    async with fault_server(ok) as proxy, fault_server(ok) as s3:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        if exempt:
            monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        async with open_store(make_settings(AWS_ENDPOINT_URL=s3.url)) as store:
            for _ in range(2):
                await store.put("a//ü b", OBJECT, MEMBERS, repeat=False)
            # httpx would rewrite this path; our own transport does not.
            refused = pytest.raises(OperatorStoreError, match="ProxyError")
            with nullcontext() if exempt else refused:
                await store.put("a/../b", OBJECT, MEMBERS, repeat=False)

    path = "/bucket/a//%C3%BC%20b"
    directly = [path, path, "/bucket/a/../b"]
    assert [request.target for request in s3.requests] == directly * exempt
    assert [request.target for request in proxy.requests] == [s3.url + path] * 2 * (not exempt)
    assert {request.body for request in s3.requests + proxy.requests} == {bytes_of(OBJECT)}


async def test_https_goes_through_a_tunnel_of_the_proxy(
    make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch, authority: trustme.CA
) -> None:
    """A daemon behind a proxy would not reach S3 itself."""
    asked: list[bytes] = []

    async def tunnel(client: trio.SocketStream) -> None:
        asked.append((await client.receive_some(65536)).split(b"\r\n")[0])
        async with await trio.open_tcp_stream("127.0.0.1", server.port) as onward:
            await client.send_all(b"HTTP/1.1 200 Connected\r\n\r\n")
            async with trio.open_nursery() as both:
                both.start_soon(_relay, client, onward, both.cancel_scope)
                both.start_soon(_relay, onward, client, both.cancel_scope)

    async with (
        tls_server(authority.issue_cert("127.0.0.1")) as server,
        trio.open_nursery() as nursery,
    ):
        listeners = await nursery.start(partial(trio.serve_tcp, tunnel, 0, host="127.0.0.1"))
        port = listeners[0].socket.getsockname()[1]
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{port}")
        settings = make_settings(AWS_ENDPOINT_URL=f"https://127.0.0.1:{server.port}")
        async with open_store(settings) as store:
            await store.put("k", OBJECT, MEMBERS, repeat=False)
        nursery.cancel_scope.cancel()

    assert asked == [b"CONNECT 127.0.0.1:%d HTTP/1.1" % server.port]
    assert server.bodies == [bytes_of(OBJECT)]


async def _relay(source: trio.abc.Stream, sink: trio.abc.Stream, both: trio.CancelScope) -> None:
    with suppress(trio.BrokenResourceError):
        while data := await source.receive_some(65536):
            await sink.send_all(data)
    both.cancel()


async def test_an_invalid_proxy_url_stops_the_start(
    make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mistyped proxy would end the daemon with a traceback."""
    monkeypatch.setenv("HTTPS_PROXY", "nonsense://x")
    with pytest.raises(SettingsError, match="proxy variables"):
        async with open_store(make_settings()):
            raise AssertionError
