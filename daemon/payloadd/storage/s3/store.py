"""A store in a bucket of S3, or of any server that speaks its protocol.

A ``put`` is one attempt. It ends with S3's own confirmation (``confirmation.py``), or with an
error. An attempt may be a repetition: the object of an attempt whose answer was lost is then under
the key already. Its metadata name its batch, so it can be recognized.
"""

from __future__ import annotations

import hashlib
import time
from functools import lru_cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

from payloadd.config.reasons import is_unicode
from payloadd.errors import OperatorStoreError, SettingsError, StoreError, TransientStoreError
from payloadd.model.formats.api import EncodedObject, ObjectKind
from payloadd.model.job import Members
from payloadd.storage.s3.bucket import create_bucket
from payloadd.storage.s3.checksums import BodyHeaders
from payloadd.storage.s3.confirmation import (
    MD5_IN_LOOP,
    comparable_md5,
    md5_of,
    problem_of,
    wrong_etag,
)
from payloadd.storage.s3.credentials import find_access
from payloadd.storage.s3.errors import (
    WRONG_ANSWER,
    error_of,
    refuses_condition,
    wants_content_md5,
)
from payloadd.storage.s3.glance import Glance
from payloadd.storage.s3.options import (
    FIRST,
    IF_NONE_MATCH,
    LAST,
    PAYLOADS,
    describes,
    has_identity,
    identity,
    is_same_batch,
    object_options,
)
from payloadd.storage.s3.request import RequestTemplate, S3Request
from payloadd.storage.s3.sender import Sender
from payloadd.storage.s3.sigv4 import BODY_HASH
from payloadd.storage.s3.variants import PutVariants, needs_signed_body

if TYPE_CHECKING:
    from collections.abc import Callable

    from payloadd.config.parsers import S3Url
    from payloadd.config.settings import Settings
    from payloadd.storage.s3.credentials import Access
    from payloadd.storage.s3.response import S3Response
    from payloadd.storage.s3.variants import Variant

_HASH_IN_THREAD: Final = 256 * 1024
"""Bytes above which hashing blocks the event loop for longer than a thread costs."""
_NO_BODY: Final = EncodedObject((), ObjectKind("", ""))
_NO_MEMBERS: Final = Members(0, "-", "-")
"""The identity of an object that is no batch."""
_NO_BODY_HASH: Final = (hashlib.sha256(b"").hexdigest().encode(),)
_NOT_READABLE: Final = frozenset(
    {
        HTTPStatus.UNAUTHORIZED,
        HTTPStatus.FORBIDDEN,
        HTTPStatus.METHOD_NOT_ALLOWED,
        HTTPStatus.NOT_IMPLEMENTED,
    }
)
"""Statuses of a HEAD that PutObject alone does not allow, or that a server does not know."""
_EXISTS: Final = frozenset({HTTPStatus.PRECONDITION_FAILED, HTTPStatus.NOT_MODIFIED})
"""Statuses of a conditional PUT whose key has an object. 304 is right for GET alone (RFC 9110,
section 13.1.2), but MinIO has sent it up to 2024, and proxies with a cache may."""
_PERHAPS_STORED: Final = frozenset(
    {HTTPStatus.BAD_REQUEST, HTTPStatus.FORBIDDEN, HTTPStatus.CONFLICT}
)
"""Statuses with which stores refuse to replace an object: object lock, retention, write once."""


class S3Store:
    """A store in a bucket; see :class:`~payloadd.storage.api.Store`."""

    def __init__(
        self,
        settings: Settings,
        url: S3Url,
        access: Access,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._prefix = f"{url.prefix}/" if url.prefix else ""
        self._sender = Sender(settings, url, access, clock)
        self._learnt = self._sender.learnt
        self._options = object_options(settings)
        self._body_headers = BodyHeaders(settings.s3_checksum)
        self._variants = PutVariants(
            settings.s3_if_none_match,
            self._learnt,
            may_be_unsigned=self._body_headers.may_be_unsigned
            and self._sender.origin.startswith("https:"),
        )
        self._etags_are_md5: bool | None = None
        """None until the first ETag was compared."""
        self._delete = RequestTemplate("DELETE", self._options.other, (BODY_HASH,))
        self._head = RequestTemplate("HEAD", self._options.other, (BODY_HASH,))
        self._put_template = lru_cache(maxsize=16)(self._new_put_template)

    async def put(self, key: str, body: EncodedObject, members: Members, *, repeat: bool) -> None:
        """Store one object in one attempt. Raises StoreError."""
        variant = self._variants.repeated if repeat else self._variants.first
        # A reader may be in the middle of the object that other bytes would replace.
        asks_first = repeat and not variant.conditional and not body.kind.same_bytes
        if asks_first and await self._has(self._prefix + key, members, body):
            return
        # Not one function for both: to await one for each small body was measurable.
        hashes = self._hash_small(body, variant) or await self._hash_in_thread(body, variant)
        request = self._put_request(key, body, members, variant, hashes)
        response = await self._sender.send(request)
        if response is not None:
            await self._conclude(_Attempt(request, members, variant, repeat), response)
        elif self._variants.awaits_checksum:
            self._variants.note_checksum()

    async def replace(self, key: str, body: EncodedObject) -> None:
        """Store one object in place of any other one under the key; see ``Store``."""
        variant = self._variants.first._replace(conditional=False)
        await self._send(key, body, _NO_MEMBERS, variant, repeat=False)

    async def delete(self, key: str) -> None:
        """Delete one object; a missing object is no error. Raises StoreError."""
        response = await self._send_without_body(self._delete, self._prefix + key)
        if not response.successful and response.code != "NoSuchKey":
            raise error_of(response)

    async def read_back(self, key: str, body: EncodedObject, members: Members) -> bool:
        """Return whether the store has the object; False if the rights do not allow to ask.

        Raises StoreError if the object is missing, or is another one.
        """
        response = await self._send_without_body(self._head, self._prefix + key)
        if response.status in _NOT_READABLE:
            return False
        if response.status == HTTPStatus.NOT_FOUND:
            raise OperatorStoreError(WRONG_ANSWER, f"{key} was confirmed, and is not there")
        if not response.successful:
            raise error_of(response)
        if not describes(response.headers, members, body):
            raise OperatorStoreError(WRONG_ANSWER, f"{key} is another object than the stored one")
        return True

    async def create(self) -> bool:
        """Create the bucket, and return whether it was missing. Raises StoreError."""
        return await create_bucket(self._sender)

    async def identify(self) -> str:
        """Return the last four characters of the access key, and the region.

        Raises OperatorStoreError if there are no keys.
        """
        return await self._sender.identify()

    def credentials_expire(self) -> float | None:
        """Return when the held keys expire, in Unix time; None if they do not, or not known."""
        return self._sender.credentials_expire()

    def learnt(self) -> list[str]:
        """Return what the answers of the store have corrected, one line each."""
        return self._learnt.lines()

    async def reload(self) -> None:
        """Read the files and run the processes again that the keys come from."""
        await self._sender.reload()

    async def aclose(self) -> None:
        """Close all connections, and end the processes that fetch keys."""
        await self._sender.aclose()

    def _hash_small(self, body: EncodedObject, variant: Variant) -> tuple[bytes, ...] | None:
        """Return the values of the headers with hashes; None for a body that takes too long."""
        if body.size > _HASH_IN_THREAD:
            return None
        return self._values(body, variant)

    async def _hash_in_thread(self, body: EncodedObject, variant: Variant) -> tuple[bytes, ...]:
        return await trio.to_thread.run_sync(self._values, body, variant, abandon_on_cancel=True)

    def _values(self, body: EncodedObject, variant: Variant) -> tuple[bytes, ...]:
        return self._body_headers.values(
            body.pieces, content_md5=variant.content_md5, signed_body=variant.signed_body
        )

    def _put_request(
        self,
        key: str,
        body: EncodedObject,
        members: Members,
        variant: Variant,
        hashes: tuple[bytes, ...],
    ) -> S3Request:
        payloads, first, last, _ = members
        values = (*hashes, first.encode(), last.encode(), b"%d" % payloads)
        template = self._put_template(body.kind, variant)
        return S3Request(template, self._prefix + key, values, body)

    def _new_put_template(self, kind: ObjectKind, variant: Variant) -> RequestTemplate:
        """Return the template of the PUTs of one kind of objects."""
        headers = self._options.of_kind(kind)
        if variant.conditional:
            headers[IF_NONE_MATCH] = "*"
        varying = (
            *self._body_headers.names(content_md5=variant.content_md5),
            FIRST,
            LAST,
            PAYLOADS,
        )
        checksum = self._body_headers.checksum
        glance = None if checksum is None else Glance(checksum, varying.index(checksum))
        return RequestTemplate("PUT", headers, varying, glance)

    async def _conclude(self, attempt: _Attempt, response: S3Response) -> None:
        """Decide about an answer to a PUT that is not a confirmation at a glance.

        Raises StoreError.
        """
        variant = attempt.variant
        if not variant.content_md5 and wants_content_md5(response):
            self._variants.note_content_md5()
            return await self._again(attempt, variant._replace(content_md5=True))
        if needs_signed_body(variant, response):
            return await self._with_signed_body(attempt)
        if variant.conditional and response.status in _EXISTS:
            return await self._compare(attempt, response)
        if self._may_drop_condition(variant) and refuses_condition(response):
            return await self._without_condition(attempt)
        error = await self._error_of(attempt, response)
        # A key that is not of a batch may be replaced again before the first one is carried out.
        if response.repeated and attempt.members is _NO_MEMBERS:
            raise error or TransientStoreError(
                "SentTwice", "the request was sent twice, and the first one may be carried out late"
            )
        if error is None:
            return None
        repeat = attempt.repeat or response.repeated
        if repeat and response.status in _PERHAPS_STORED:
            request = attempt.request
            if await self._has(request.key, attempt.members, request.body):
                return None
        raise error

    async def _again(self, attempt: _Attempt, variant: Variant) -> None:
        """Send the PUT of an attempt with other headers. Raises StoreError."""
        key = attempt.request.key.removeprefix(self._prefix)
        body, members = attempt.request.body, attempt.members
        await self._send(key, body, members, variant, repeat=attempt.repeat)

    async def _send(
        self, key: str, body: EncodedObject, members: Members, variant: Variant, *, repeat: bool
    ) -> None:
        """Send one PUT. Raises StoreError. ``put`` does the same with fewer calls."""
        hashes = self._hash_small(body, variant) or await self._hash_in_thread(body, variant)
        request = self._put_request(key, body, members, variant, hashes)
        response = await self._sender.send(request)
        if response is not None:
            await self._conclude(_Attempt(request, members, variant, repeat), response)

    def _may_drop_condition(self, variant: Variant) -> bool:
        return variant.conditional and self._variants.drops_condition

    async def _with_signed_body(self, attempt: _Attempt) -> None:
        """Send the PUT with a signed body. Raises StoreError."""
        await self._again(attempt, attempt.variant._replace(signed_body=True))
        # The store took the object, so it was the unsigned body that it refused.
        self._variants.note_signed_body()

    async def _without_condition(self, attempt: _Attempt) -> None:
        """Send the PUT without a condition, which the store may not know. Raises StoreError."""
        request = attempt.request
        asks_first = attempt.repeat and not request.body.kind.same_bytes
        if asks_first and await self._has(request.key, attempt.members, request.body):
            return
        await self._again(attempt, attempt.variant._replace(conditional=False))
        # The store took the object, so it was the condition that it does not know.
        self._variants.note_unknown_condition()

    async def _compare(self, attempt: _Attempt, refusal: S3Response) -> None:
        """Return if the object under the key is that of the attempt's batch. Raises StoreError.

        ``refusal`` is the answer to the PUT: it has an error code, which an answer to HEAD has not.

        To ask needs GetObject, and PutObject alone is enough for payloadd: if the store refuses to
        tell, the object is the batch's, because the key has an id that no other batch has. So is
        the object of a batch that has lost members in the journal: it has them still.
        """
        request, members = attempt.request, attempt.members
        response = await self._send_without_body(self._head, request.key)
        if response.status == HTTPStatus.NOT_FOUND and self._may_drop_condition(attempt.variant):
            # Deleted meanwhile, or the store contradicts itself.
            return await self._again(attempt, attempt.variant._replace(conditional=False))
        if response.status in _NOT_READABLE:
            if refusal.status == HTTPStatus.NOT_MODIFIED:  # perhaps not the store's own answer
                raise error_of(refusal)
            return None
        if response.status == HTTPStatus.NOT_FOUND:
            raise OperatorStoreError(
                WRONG_ANSWER,
                "the store refuses the object because its key exists, and has no object there:"
                " S3_IF_NONE_MATCH=off sends no condition",
            )
        if not response.successful:
            error = error_of(response)
            raise error_of(refusal) if isinstance(error, OperatorStoreError) else error
        if not members.whole or describes(response.headers, members, request.body):
            return None
        same_bytes = request.body.kind.same_bytes or has_identity(response.headers)
        if not same_bytes and self._may_drop_condition(attempt.variant):
            # Versions before 0.2 sent no metadata, and compressed the batch to other bytes.
            return await self._again(attempt, attempt.variant._replace(conditional=False))
        raise OperatorStoreError(
            WRONG_ANSWER,
            f"another object is under the key already, with {identity(response.headers)};"
            " delete or rename it",
        )

    async def _has(self, key: str, members: Members, body: EncodedObject) -> bool:
        """Return whether the store is known to have the object of a batch under ``key``."""
        try:
            response = await self._send_without_body(self._head, key)
        except StoreError:
            return False
        if not members.whole:
            return response.successful
        return (
            response.successful
            and is_same_batch(response.headers, members)
            and describes(response.headers, members, body)
        )

    async def _error_of(self, attempt: _Attempt, response: S3Response) -> StoreError | None:
        """Return the error of an answer to a PUT; None for a confirmation."""
        if response.successful:
            origin = self._sender.origin
            if attempt.request.body.size <= _HASH_IN_THREAD:
                problem = problem_of(response, attempt.request, origin)
            else:
                problem = await trio.to_thread.run_sync(
                    problem_of, response, attempt.request, origin, abandon_on_cancel=True
                )
            return problem or await self._compare_etag(attempt.request, response)
        error = error_of(response)
        if response.status == HTTPStatus.CONFLICT and attempt.variant.conditional:
            # Another upload of the key is in progress ("Conditional writes", S3 user guide).
            return TransientStoreError(error.code, response.message)
        if error.code == "MetadataTooLarge" and self._options.has_metadata:
            return OperatorStoreError(error.code, response.message + " (see S3_METADATA)")
        return error

    async def _compare_etag(
        self, request: S3Request, response: S3Response
    ) -> OperatorStoreError | None:
        """Return an error if the ETag is an MD5, and not that of the object."""
        etag = comparable_md5(response.headers)
        if etag is None or self._etags_are_md5 is False:
            return None
        if request.body.size <= MD5_IN_LOOP:
            own = md5_of(request)
        else:
            own = await trio.to_thread.run_sync(md5_of, request, abandon_on_cancel=True)
        if self._etags_are_md5 and own != etag:
            return wrong_etag(response, self._sender.origin)
        self._etags_are_md5 = own == etag
        return None

    async def _send_without_body(self, template: RequestTemplate, key: str) -> S3Response:
        response = await self._sender.send(S3Request(template, key, _NO_BODY_HASH, _NO_BODY))
        assert response is not None  # noqa: S101 - only a PUT is confirmed at a glance
        return response


class _Attempt(NamedTuple):
    """A PUT that was sent."""

    request: S3Request
    members: Members
    variant: Variant
    repeat: bool


async def open_s3_store(settings: Settings, url: S3Url) -> S3Store:
    """Return a store for ``url``; no request is sent yet. Raises SettingsError."""
    if not is_unicode(url.prefix):
        raise SettingsError(["STORE_URL: the prefix is not UTF-8"])
    return S3Store(settings, url, await find_access(settings))
