"""``payloadd check``: would it work, and if not, why not.

Each step goes as far towards the real thing as it can without taking a payload: the same
store, the same credentials, a real object written and deleted again.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import trio

from payloadd.config.parsers import S3Url
from payloadd.errors import PayloaddError, SettingsError
from payloadd.ingress.server.tls import open_certificates
from payloadd.journal.open import check_journal
from payloadd.model.formats.ndjson import encode
from payloadd.model.keys import KeyTemplate
from payloadd.storage.api import open_store

if TYPE_CHECKING:
    from collections.abc import Callable

    from payloadd.config.settings import Settings
    from payloadd.storage.api import Store


async def check(settings: Settings, say: Callable[[str], None]) -> bool:
    """Try every step in turn and say how it went; returns whether all went well."""
    say("ok      settings")
    step = "keys"
    try:
        example = KeyTemplate.parse(settings.key_template).render(uuid.UUID(int=0))
        say(f"ok      keys         such as {example}")
        step = "TLS"
        if open_certificates(settings) is not None:
            say(f"ok      TLS          {settings.tls_cert}")
        step = "journal"
        if (found := await check_journal(settings)) is not None:
            say(f"ok      journal      {found}")
        step = "store"
        async with open_store(settings) as store:
            say(f"ok      store        {_name(settings)}")
            step = "credentials"
            say(f"ok      credentials  {await store.identify()}")
            step = "probe"
            await _probe(store, settings, say)
    except SettingsError as error:
        say(f"failed  {step:<12} {'; '.join(error.problems)}")
        return False
    except PayloaddError as error:
        say(f"failed  {step:<12} {error}")
        return False
    return True


async def _probe(store: Store, settings: Settings, say: Callable[[str], None]) -> None:
    """Write one object and delete it again."""
    key = f"payloadd-check-{uuid.uuid4()}.ndjson"
    try:
        with trio.fail_after(settings.upload_timeout):
            await store.put(key, encode([b"{}\n"], "none"))
            say(f"ok      write        {key}")
            await store.delete(key)
            say(f"ok      delete       {key}")
    except trio.TooSlowError:
        raise PayloaddError(
            f"no answer within UPLOAD_TIMEOUT ({settings.upload_timeout:g} s)"
        ) from None


def _name(settings: Settings) -> str:
    """Return the store as a user knows it."""
    url = settings.store_url
    if not isinstance(url, S3Url):
        return f"file://{url.path.absolute()}"
    where = f" at {settings.aws_endpoint_url}" if settings.aws_endpoint_url else ""
    return f"s3://{url.bucket}/{url.prefix}".rstrip("/") + where
