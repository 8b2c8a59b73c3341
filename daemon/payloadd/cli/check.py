"""``payloadd check``: try the settings without accepting a payload.

Each step uses the code of the daemon: the same journal, store and credentials, and a real object.
The rights that the daemon needs are enough. The object is read back and deleted if the store allows
it; that it does not is a note and no failure.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import trio

from payloadd.cli.running_daemon import status_notes, status_of_daemon
from payloadd.config.parsers import S3Url
from payloadd.config.stream_names import DEFAULT_STREAM, some_of
from payloadd.errors import PayloaddError, SettingsError, StoreError
from payloadd.ingress.admission import open_admission
from payloadd.ingress.server.tls import open_certificates
from payloadd.journal.open import check_journal
from payloadd.model.formats import FORMATS
from payloadd.model.formats.configuration import open_formats
from payloadd.model.job import IdSource
from payloadd.model.keys import KeyTemplate
from payloadd.model.layout import Layout
from payloadd.pipeline.store_probe import ProbeObject
from payloadd.storage.api import open_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from payloadd.config.settings import Settings
    from payloadd.storage.api import Store

_NO_BUCKET: Final = "NoSuchBucket"


async def check(
    settings: Settings, write_line: Callable[[str], None], *, create: bool = False
) -> bool:
    """Try every step until one fails; returns whether all succeeded.

    ``write_line`` is called with a line for each step. With ``create`` a missing bucket or folder
    is created.
    """
    report = _Report(write_line)
    report.ok("settings")
    report.step = "keys"
    try:
        streams = settings.streams or ()
        if streams:
            report.ok("streams", ", ".join(some_of((DEFAULT_STREAM, *streams))))
        report.ok("keys", f"such as {_example_key(settings)}")
        report.step = "format"
        if settings.object_format == "parquet":
            await _check_parquet(settings, report)
        report.step = "TLS"
        if open_certificates(settings) is not None:
            report.ok("TLS", _certificate_name(settings))
        report.step = "tokens"
        if settings.auth_tokens is not None:
            _check_tokens(settings, report)
        report.step = "journal"
        notes: list[str] = []
        if (found := await check_journal(settings, notes.append, create=create)) is not None:
            report.ok("journal", found)
        for line in notes:
            report.note("journal", line)
        await _check_daemon(settings, found or "", report)
        await _check_store(settings, report, create=create)
    except SettingsError as error:
        report.failed("; ".join(error.problems))
        return False
    except PayloaddError as error:
        report.failed(str(error))
        return False
    return True


class _Report:
    """The lines of the steps; ``step`` is the step in progress."""

    def __init__(self, write_line: Callable[[str], None]) -> None:
        self._write_line = write_line
        self.step = ""

    def ok(self, step: str, detail: str = "") -> None:
        """Report a step that succeeded."""
        self._write("ok", step, detail)

    def note(self, step: str, detail: str) -> None:
        """Report what an operator may want to know, and need not change."""
        self._write("note", step, detail)

    def failed(self, detail: str) -> None:
        """Report the failure of the step in progress."""
        self._write("failed", self.step, detail)

    def _write(self, state: str, step: str, detail: str) -> None:
        self._write_line(f"{state:<8}{step:<13}{detail}".rstrip())


class _Probe:
    """One object with one empty payload, written to a store and read back."""

    def __init__(self, store: Store, settings: Settings, report: _Report) -> None:
        self._store = store
        self._settings = settings
        self._report = report
        self._object = ProbeObject(settings)

    async def write(self, *, create: bool) -> str:
        """Write the object, and return its key; ``create``: after a missing bucket was created.

        Raises PayloaddError.
        """
        try:
            return await self._write()
        except StoreError as error:
            if error.code != _NO_BUCKET:
                raise
            if not create:
                raise PayloaddError(f"{error} (payloadd check --create creates it)") from error
        with self._in_time():
            missing = await self._store.create()
        self._report.ok("create", _store_name(self._settings) + ("" if missing else ", exists"))
        return await self._write()

    async def _write(self) -> str:
        """Write the object, and return the key that the rights allow it."""
        with self._reporting_timeout():
            key = await self._object.write(self._store, self._settings.upload_timeout)
        self._report.ok("write", key)
        return key

    async def read_back(self, key: str) -> None:
        """Compare the stored object, if the store allows that. Raises PayloaddError."""
        probe = self._object
        with self._in_time():
            allowed = await self._store.read_back(key, probe.body, probe.members)
        if allowed:
            self._report.ok("read", key)
        else:
            self._report.note("read", "not allowed, and not needed")

    async def delete(self, key: str) -> None:
        """Delete the object, or say that it stays. Raises PayloaddError after UPLOAD_TIMEOUT."""
        try:
            with self._in_time():
                await self._store.delete(key)
        except StoreError as error:
            self._report.note("delete", f"not needed, and refused: {key} stays ({error})")
        else:
            self._report.ok("delete", key)

    @contextmanager
    def _in_time(self) -> Iterator[None]:
        """Raise PayloaddError after UPLOAD_TIMEOUT."""
        with self._reporting_timeout(), trio.fail_after(self._settings.upload_timeout):
            yield

    @contextmanager
    def _reporting_timeout(self) -> Iterator[None]:
        """Raise PayloaddError in place of trio.TooSlowError."""
        try:
            yield
        except trio.TooSlowError:
            seconds = self._settings.upload_timeout
            raise PayloaddError(f"no answer within UPLOAD_TIMEOUT ({seconds:g} s)") from None


async def _check_daemon(settings: Settings, journal: str, report: _Report) -> None:
    """Note what is wrong with the daemon that uses the journal, if one runs.

    No failure: a daemon that waits for the store does so until the settings are right.
    """
    document = await status_of_daemon(settings)
    if document is None:
        return
    # Another daemon may have the address. Only a journal in files names the process that uses it.
    in_files = settings.durability == "disk" and settings.journal_url is None
    if in_files and not journal.endswith(f" process {document['process']}"):
        return
    notes = status_notes(document)
    for note in notes:
        report.note("daemon", note)
    if not notes:
        report.ok("daemon", "accepts requests")


async def _check_store(settings: Settings, report: _Report, *, create: bool) -> None:
    """Check credentials and store. Raises PayloaddError."""
    report.step = "store"
    folder = None if isinstance(settings.store_url, S3Url) else settings.store_url.path
    missing = folder is not None and not folder.exists()
    async with open_store(settings) as store:
        report.ok("store", _store_name(settings) + (" (created)" if missing else ""))
        report.step = "credentials"
        report.ok("credentials", await store.identify())
        probe = _Probe(store, settings, report)
        report.step = "write"
        key = await probe.write(create=create)
        report.step = "read"
        await probe.read_back(key)
        report.step = "delete"
        await probe.delete(key)
        for line in store.learnt():
            report.note("learnt", line)


def _example_key(settings: Settings) -> str:
    """Return a key as an object of a stream may have it."""
    stream = next(iter(settings.streams or ()), DEFAULT_STREAM)
    (example,) = IdSource().new_ids(1)
    layout = Layout.of(settings, stream)
    key = KeyTemplate.parse(layout.template, stream=stream).render(example)
    return key + FORMATS[layout.format_name].suffix


async def _check_parquet(settings: Settings, report: _Report) -> None:
    """Start the process that encodes Parquet. Raises PayloaddError."""
    async with open_formats(settings):
        encoder = FORMATS["parquet"].encoder
    schema = settings.parquet_schema
    names = [column.name for column in schema.columns] if schema else []
    columns = "columns of each batch" if schema and schema.seen else f"{len(names)} columns"
    report.ok("format", f"{encoder.rpartition(' ')[0]}, {columns} of PARQUET_SCHEMA")


def _check_tokens(settings: Settings, report: _Report) -> None:
    """Read the tokens, and note the streams of tokens that are not known. Raises SettingsError."""
    admission = open_admission(settings)
    report.ok("tokens", str(settings.auth_tokens))
    if admission is None or admission.tokens is None:
        return
    for client, streams in admission.tokens.unknown_streams().items():
        names = ", ".join(some_of(streams))
        report.note("tokens", f"{client} may write to {names}, which STREAMS does not name")


def _certificate_name(settings: Settings) -> str:
    """Return the path of the certificate, or the setting that contains the certificate itself."""
    path = str(settings.tls_cert)
    return "in TLS_CERT" if path.startswith("/proc/self/fd/") else path


def _store_name(settings: Settings) -> str:
    """Return the store as a URL, and the endpoint if it is not AWS's."""
    url = settings.store_url
    if not isinstance(url, S3Url):
        return f"file://{url.path.absolute()}"
    ignored = settings.aws_ignore_configured_endpoint_urls
    endpoint = None if ignored else settings.aws_endpoint_url
    where = f" at {endpoint}" if endpoint else ""
    return f"s3://{url.bucket}/{url.prefix}".rstrip("/") + where
