"""Find out when a store that was in trouble works again, while no request tries it.

With ``DURABILITY=store`` a daemon whose store is down says so in ``/readyz``, a balancer sends it
no requests, and the batches of the last requests were given up. Without an upload it would never
learn that the store works again; to call it ready after a while would cost requests that time out.
So a small object is written every few seconds, as ``payloadd check`` does, and deleted if the
rights allow that.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final

import trio

from payloadd.config.parsers import S3Url
from payloadd.errors import OperatorStoreError, StoreError
from payloadd.model.formats.api import EncodedObject
from payloadd.model.formats.ndjson import PLAIN_KIND
from payloadd.model.job import IdSource, Members
from payloadd.model.keys import KeyTemplate

if TYPE_CHECKING:
    from payloadd.config.settings import Settings
    from payloadd.pipeline.admission import UploadAdmission
    from payloadd.storage.api import Store

_INTERVAL: Final = 5.0
"""Seconds between two attempts."""
_WITHIN: Final = 10.0
"""Seconds for the object, whatever key it gets."""
_DENIED: Final = frozenset({"AccessDenied", "HTTP403"})


class ProbeObject:
    """An object with one empty payload, by which a store is tried."""

    def __init__(self, settings: Settings) -> None:
        (id_,) = IdSource().new_ids(1)
        url = settings.store_url
        prefix = url.prefix if isinstance(url, S3Url) else ""
        self.keys = KeyTemplate.parse(settings.key_template).probe_keys(id_, prefix)
        """The keys that it may get, the best one first."""
        self.body = EncodedObject([b"{}\n"], PLAIN_KIND)
        self.members = Members(1, str(id_), str(id_))

    async def write(self, store: Store, within: float) -> str:
        """Write the object to the first key that the rights allow, and return the key.

        Raises StoreError, and trio.TooSlowError where one attempt takes more than ``within``
        seconds.
        """
        *others, last = self.keys
        for key in others:
            try:
                await self._put(store, key, within)
            except OperatorStoreError as error:
                if error.code not in _DENIED:
                    raise
            else:
                return key
        await self._put(store, last, within)
        return last

    async def _put(self, store: Store, key: str, within: float) -> None:
        with trio.fail_after(within):
            await store.put(key, self.body, self.members, repeat=False)


class StoreProbe:
    """Writes an object while the store is in trouble and nothing is uploaded."""

    def __init__(self, store: Store, admission: UploadAdmission, settings: Settings) -> None:
        self._store = store
        self._admission = admission
        self._object = ProbeObject(settings)

    async def run(self) -> None:
        """Probe the store where nothing else does, until cancelled."""
        admission = self._admission
        while True:
            await trio.sleep(_INTERVAL)
            busy = admission.idle.busy or not admission.put_back.is_empty
            if admission.trouble.present and not busy:
                await self.probe()

    async def probe(self) -> None:
        """Write and delete the object; end the trouble of the store, or report its error."""
        trouble = self._admission.trouble
        try:
            with trio.fail_after(_WITHIN):
                key = await self._object.write(self._store, _WITHIN)
        except trio.TooSlowError:
            reason = f"NoAnswer: the store has not answered within {_WITHIN:.0f} s"
            trouble.report(trio.current_time(), "NoAnswer", reason, self._object.keys[0])
        except StoreError as error:
            trouble.report(trio.current_time(), error.code, str(error), self._object.keys[0])
        else:
            if trouble.present:
                trouble.end(trio.current_time())
            with suppress(StoreError), trio.move_on_after(_WITHIN):
                await self._store.delete(key)
