"""``payloadd check``: try the settings without accepting a payload.

Each step uses the code of the daemon: the same journal, store and credentials, and a real object,
which is written and deleted.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import trio

from payloadd.config.parsers import S3Url
from payloadd.errors import PayloaddError, SettingsError
from payloadd.ingress.admission import open_admission
from payloadd.ingress.server.tls import open_certificates
from payloadd.journal.open import check_journal
from payloadd.model.formats.api import EncodedObject
from payloadd.model.formats.ndjson import CONTENT_TYPE
from payloadd.model.keys import KeyTemplate
from payloadd.storage.api import open_store

if TYPE_CHECKING:
    from collections.abc import Callable

    from payloadd.config.settings import Settings
    from payloadd.storage.api import Store


async def check(settings: Settings, write_line: Callable[[str], None]) -> bool:
    """Try every step until one fails; returns whether all succeeded.

    ``write_line`` is called with a line for each step.
    """
    write_line("ok      settings")
    step = "keys"
    try:
        example = KeyTemplate.parse(settings.key_template).render(uuid.UUID(int=0))
        write_line(f"ok      keys         such as {example}")
        step = "TLS"
        if open_certificates(settings) is not None:
            write_line(f"ok      TLS          {settings.tls_cert}")
        step = "tokens"
        if settings.auth_tokens is not None:
            open_admission(settings)
            write_line(f"ok      tokens       {settings.auth_tokens}")
        step = "journal"
        if (found := await check_journal(settings)) is not None:
            write_line(f"ok      journal      {found}")
        step = "store"
        async with open_store(settings) as store:
            write_line(f"ok      store        {_store_name(settings)}")
            step = "credentials"
            write_line(f"ok      credentials  {await store.identify()}")
            step = "probe"
            await _write_and_delete(store, settings, write_line)
    except SettingsError as error:
        write_line(f"failed  {step:<12} {'; '.join(error.problems)}")
        return False
    except PayloaddError as error:
        write_line(f"failed  {step:<12} {error}")
        return False
    return True


async def _write_and_delete(
    store: Store, settings: Settings, write_line: Callable[[str], None]
) -> None:
    """Write one object and delete it; raises PayloaddError after UPLOAD_TIMEOUT."""
    key = f"payloadd-check-{uuid.uuid4()}.ndjson"
    try:
        with trio.fail_after(settings.upload_timeout):
            await store.put(key, EncodedObject([b"{}\n"], CONTENT_TYPE, None))
            write_line(f"ok      write        {key}")
            await store.delete(key)
            write_line(f"ok      delete       {key}")
    except trio.TooSlowError:
        raise PayloaddError(
            f"no answer within UPLOAD_TIMEOUT ({settings.upload_timeout:g} s)"
        ) from None


def _store_name(settings: Settings) -> str:
    """Return the store as a URL, and the endpoint if it is not AWS's."""
    url = settings.store_url
    if not isinstance(url, S3Url):
        return f"file://{url.path.absolute()}"
    where = f" at {settings.aws_endpoint_url}" if settings.aws_endpoint_url else ""
    return f"s3://{url.bucket}/{url.prefix}".rstrip("/") + where
