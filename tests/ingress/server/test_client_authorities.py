"""Changes of TLS_CLIENT_CA while the daemon runs: a removed authority gives no access any more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import h2.config
import h2.connection
import h2.events
import pytest
import trio
import trustme

from payloadd.config import settings as config
from payloadd.ingress.server.tls import open_certificates
from tests.ingress import rig as rigs
from tests.ingress.rig import COLLECTION, SOON, post

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator, MutableMapping

    from payloadd.config.settings import Settings
    from payloadd.ingress.server.tls import Certificates
    from tests.ingress.tls_files import Files

TAKEN = [b"1", b'"two"']
REQUEST = [
    (":method", "POST"),
    (":path", "/v1/payloads"),
    (":scheme", "https"),
    (":authority", "here"),
    ("content-type", "application/json"),
]


class Clients:
    """Authorities of clients, in the file TLS_CLIENT_CA."""

    def __init__(self, files: Files) -> None:
        self.files = files
        self.path = files.folder / "clients.pem"
        self.kept, self.removed = trustme.CA(), trustme.CA()
        self.write(self.kept, self.removed)

    def write(self, *authorities: trustme.CA, note: bytes = b"") -> None:
        """Write the certificates of these authorities to the file, after the comment ``note``."""
        pems = [authority.cert_pem.bytes() for authority in authorities]
        self.path.write_bytes(note + b"\n".join(pems))

    def context(self, authority: trustme.CA, *protocols: str) -> ssl.SSLContext:
        """Return a client's context with a certificate of this authority."""
        context = self.files.client_context(*protocols)
        authority.issue_cert("client").configure_cert(context)
        return context


@pytest.fixture
def clients(files: Files) -> Clients:
    """Write a file with two authorities."""
    return Clients(files)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Certificates]:
    """Collect the ``Certificates`` of the running server."""
    found: list[Certificates] = []

    def opened(settings: Settings) -> Certificates | None:
        certificates = open_certificates(settings)
        if certificates is not None:
            found.append(certificates)
        return certificates

    monkeypatch.setattr(rigs, "open_certificates", opened)
    return found


@pytest.fixture(autouse=True)
def may_log(log_lines: list[MutableMapping[str, Any]]) -> Iterator[None]:
    """Expect no log line but ``tls_reloaded``."""
    yield
    assert {line["event"] for line in log_lines} <= {"tls_reloaded"}


@pytest.mark.usefixtures("each_way")
async def test_connections_of_a_removed_authority_are_closed(
    clients: Clients, made: list[Certificates]
) -> None:
    """A client that may no longer post could post for as long as it keeps its connection."""
    files = clients.files
    async with (
        files.running(TLS_CLIENT_CA=str(clients.path)) as rig,
        files.wire(rig, clients.context(clients.removed)) as idle,
        files.wire(rig, clients.context(clients.removed)) as busy,
    ):
        await idle.send(post())
        assert (await idle.answer()).status == 202
        rig.intake.open, rig.intake.asked = trio.Event(), trio.Event()
        await busy.send(post())
        await rig.intake.asked.wait()
        clients.write(clients.kept)
        await trio.to_thread.run_sync(made[0].reload)
        with trio.fail_after(SOON):
            assert await idle.rest() == b""
            rig.intake.open.set()
            assert (await busy.answer()).status == 202
            assert await busy.rest() == b""
            async with files.wire(rig, clients.context(clients.kept)) as wire:
                await wire.send(post())
                assert (await wire.answer()).status == 202
        assert rig.intake.taken == [TAKEN] * 3


async def test_http2_connections_of_a_removed_authority_are_closed(
    clients: Clients, made: list[Certificates]
) -> None:
    """HTTP/2 connections live longest of all, and would keep their access."""
    files = clients.files
    async with (
        files.running(TLS_CLIENT_CA=str(clients.path)) as rig,
        files.wire(rig, clients.context(clients.removed, "h2")) as wire,
    ):
        client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        client.initiate_connection()
        client.send_headers(1, REQUEST)
        client.send_data(1, COLLECTION, end_stream=True)
        rig.intake.open, rig.intake.asked = trio.Event(), trio.Event()
        await wire.send(client.data_to_send())
        await rig.intake.asked.wait()
        clients.write(clients.kept)
        await trio.to_thread.run_sync(made[0].reload)
        await trio.sleep(0.5)  # the server checks four times per second
        rig.intake.open.set()
        with trio.fail_after(SOON):
            events = client.receive_data(await wire.rest())
        (answer,) = [event for event in events if isinstance(event, h2.events.ResponseReceived)]
        assert dict(answer.headers)[b":status"] == b"202"


@pytest.mark.usefixtures("each_way")
async def test_connections_stay_open_if_no_authority_is_removed(
    clients: Clients, made: list[Certificates]
) -> None:
    """Each renewal of a certificate would break all connections."""
    files = clients.files
    async with (
        files.running(TLS_CLIENT_CA=str(clients.path)) as rig,
        files.wire(rig, clients.context(clients.removed)) as wire,
    ):
        await wire.send(post())
        assert (await wire.answer()).status == 202
        files.write()
        note = "# Zertifikate für Kunden\n".encode()
        clients.write(clients.removed, trustme.CA(), clients.kept, note=note)
        await trio.to_thread.run_sync(made[0].reload)
        await trio.sleep(0.5)  # the server checks four times per second
        await wire.send(post())
        assert (await wire.answer()).status == 202
        assert made[0].trust == 0


def test_an_invalid_authority_file_closes_no_connection(
    clients: Clients, log_lines: list[MutableMapping[str, Any]]
) -> None:
    """A typing error in the file would disconnect all clients."""
    environ = {**clients.files.environ, "TLS_CLIENT_CA": str(clients.path)}
    certificates = open_certificates(config.load(environ))
    assert certificates is not None
    clients.path.write_text("nothing")
    certificates.reload()
    assert certificates.trust == 0
    assert [line["event"] for line in log_lines] == ["tls_not_reloaded"]
    log_lines.clear()
