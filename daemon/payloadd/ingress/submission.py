"""Submit the payloads of a POST to the pipeline.

The Quart handler and the fast path both end here, so they accept the same requests and refuse the
others for the same reasons.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

from payloadd.errors import KeyReusedError, RefusedError, StoreRefusedError, TooLargeError
from payloadd.ingress.body import (
    IN_LOOP_BYTES,
    IN_LOOP_DECOMPRESSED_BYTES,
    Limits,
    check_headers,
    decode,
)
from payloadd.ingress.cors import Cors, json_for_text
from payloadd.ingress.decompression import TooMuchWorkError
from payloadd.ingress.envelope import EnvelopeMaker
from payloadd.ingress.large_bodies import LargeBodies, LargeBody, Lines
from payloadd.ingress.problem import Problem, refusal_problem
from payloadd.ingress.routes import DEFAULT, Routes, Stream, unknown_stream
from payloadd.ingress.switch_interval import SwitchInterval
from payloadd.ingress.upload_waits import UploadWaits
from payloadd.observe.logs import get_logger
from payloadd.pipeline.intake import Receipt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from payloadd.config.settings import Settings
    from payloadd.ingress.admission import Admission
    from payloadd.ingress.envelope import HeaderPatterns
    from payloadd.ingress.request_memory import RequestMemory
    from payloadd.model.envelope import Envelope
    from payloadd.observe.health import Health
    from payloadd.pipeline.intake import Intake

log = get_logger(__name__)

_PAYLOADS_IN_LOOP: Final = 2_000
"""Payloads of one request up to which the event loop joins them within its budget of about a
millisecond."""
_JOBS_IN_LOOP: Final = 256
"""Jobs made of one request, within the same budget."""
KEY_CHARACTERS: Final = r"[\x21-\x7e]"
LONGEST_KEY: Final = 255
_KEY: Final = re.compile(f"{KEY_CHARACTERS}{{1,{LONGEST_KEY}}}")


class PostHeaders(NamedTuple):
    """The parts of a POST's head that matter.

    A header that is missing is None; the lines of one header are joined.
    """

    content_type: str | None
    content_encoding: str | None
    idempotency_key: str | None
    document: bool = False
    """Whether the path is the one of documents: the whole body is one payload."""
    origin: str | None = None
    x_forwarded_for: str | None = None
    forwarded: str | None = None
    stream: Stream = DEFAULT
    """The stream of the path."""
    wait: int | None = None
    """Seconds that the answer waits for the store (see ``UploadWaits.seconds_to_wait``)."""
    kept: bytes | None = None
    """The headers for the envelope (see ``HeaderPatterns.select``)."""


SubmissionOutcome = Receipt | RefusedError | Problem
"""The result of a submitted request."""


class Submitter:
    """Decodes request bodies and submits their payloads to the pipeline.

    ``intake`` receives the payloads, ``health`` knows whether the daemon drains, ``memory``
    accounts for the bodies, and ``admission`` knows the clients; None: every client may post.
    ``routes`` has the streams; None: the default one alone.
    """

    def __init__(
        self,
        intake: Intake,
        health: Health,
        settings: Settings,
        memory: RequestMemory,
        admission: Admission | None = None,
        routes: Routes | None = None,
    ) -> None:
        self._intake = intake
        self.routes = Routes() if routes is None else routes
        """The paths of POSTs."""
        self._health = health
        self._admission = admission
        self.cors = None if settings.cors_origins is None else Cors(settings.cors_origins)
        """The headers for browsers; None without CORS_ORIGINS."""
        self._envelopes = None if settings.envelope is None else EnvelopeMaker(settings.envelope)
        self.kept_headers: HeaderPatterns | None = (
            None if self._envelopes is None else self._envelopes.headers
        )
        """The headers that become a part of envelopes; None without any."""
        self.waits = UploadWaits(intake, settings)
        self._limits = Limits(settings.max_length, settings.max_payloads)
        self._max_payloads_in_loop = min(
            _PAYLOADS_IN_LOOP, _JOBS_IN_LOOP * settings.batch_max_payloads
        )
        self.max_length = settings.max_length
        """Bytes of the largest body (MAX_LENGTH)."""
        self.timeout = settings.request_timeout
        """Seconds within which a whole request must arrive (REQUEST_TIMEOUT)."""
        self.memory = memory
        self.switch_interval = SwitchInterval()
        self.large_bodies = LargeBodies(
            self._limits, self.timeout, memory.wait_within_bound, self.switch_interval.shorten
        )

    async def run(self) -> None:
        """Run the tasks that requests depend on, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.switch_interval.run)
            nursery.start_soon(self.memory.run)
            nursery.start_soon(self.large_bodies.run)
            nursery.start_soon(self.waits.run)

    @property
    def needs_tokens(self) -> bool:
        """Whether each POST needs a token (AUTH_TOKENS)."""
        return self._admission is not None and self._admission.needs_tokens

    @property
    def behind_proxies(self) -> bool:
        """Whether proxies state the addresses of clients (TRUSTED_PROXIES)."""
        return self._admission is not None and self._admission.behind_proxies

    def client_address(self, peer: str | None, headers: PostHeaders) -> str | None:
        """Return the address of the client of a request; ``peer`` may be a trusted proxy."""
        if self._admission is None or peer is None:
            return peer
        return self._admission.client_address(peer, headers.x_forwarded_for, headers.forwarded)

    def check(
        self,
        headers: PostHeaders,
        token: bytes | None,
        certificate_name: str | None,
        address: Callable[[], str | None],
    ) -> str | None:
        """Refuse a request by its head, before its body is read; return the name of its client.

        Both ways in call it with the complete head, and close the connection after the answer if
        it raises and the request has a body (see ``closes_connection``). The order of the checks:
        first the state of the daemon, then the client, then the form of the request.

        ``token`` is the digest of the client's token (see ``token_digest``), ``certificate_name``
        the name in its certificate, and ``address`` returns its address. A client has a name if it
        has a token or a certificate. Raises Problem: DRAINING, UNAUTHENTICATED, FORBIDDEN,
        RATE_LIMITED, UNKNOWN_STREAM, UNSUPPORTED_TYPE, UNSUPPORTED_ENCODING.
        """
        # Jobs on disk outlive the drain, so a restart is no reason to refuse a request.
        draining = self._health.phase == "draining" and not self._intake.durable
        if draining and (refusal := self._intake.refusal()):
            raise refusal_problem(refusal)
        name = None
        if self._admission is not None:
            name = self._admission.admit(token, certificate_name, address, headers.stream.name)
        # After the check of the token: other clients do not learn which streams there are.
        if headers.stream.number < 0:
            raise unknown_stream(headers.stream.name)
        content_type = headers.content_type
        if self.cors is not None:
            content_type = json_for_text(content_type)
        check_headers(content_type, headers.content_encoding, document=headers.document)
        return name

    def submit(
        self,
        headers: PostHeaders,
        data: bytes | bytearray,
        start: int,
        on_outcome: Callable[[SubmissionOutcome], None],
        address: Callable[[], str | None],
        name: str | None,
        is_gone: Callable[[], bool],
    ) -> None:
        """Submit one request without waiting; ``on_outcome`` is called with its outcome.

        The body begins at ``start`` of ``data``. The caller accounts for the memory of ``data``
        until ``on_outcome`` is called. ``address`` returns the client's address, and ``is_gone``
        whether it gets no answer any more; both are only called for large bodies. ``name`` is what
        ``check`` returned.

        Raises Problem if the request is refused at once; then ``on_outcome`` is not called.
        """
        if self.cors is not None:
            headers = headers._replace(content_type=json_for_text(headers.content_type))
        envelope = None
        if self._envelopes is not None:
            envelope = self._envelopes.make(address, name, headers.stream.name, headers.kept)
        try:
            if headers.content_encoding is None:
                self._submit_now(headers, data, start, on_outcome, name, envelope)
            else:
                self._submit_compressed(headers, data, start, on_outcome, name, envelope)
        except TooMuchWorkError:
            stream, watch, received = headers.stream, bool(headers.wait), len(data) - start
            key = _check_key(headers.idempotency_key, name, stream)
            body = LargeBody(
                data,
                start,
                headers.content_type,
                headers.content_encoding,
                submit=partial(
                    self._submit_lines, key, received, on_outcome, stream.number, envelope, watch
                ),
                refuse=on_outcome,
                client=name or address(),
                is_gone=is_gone,
                document=headers.document,
            )
            self.large_bodies.add(body)
        except Problem:
            raise  # not from itself: such a cycle would keep the body until a garbage collection
        except Exception as error:
            raise as_problem(error) from error

    def _submit_now(
        self,
        headers: PostHeaders,
        data: bytes | bytearray,
        start: int,
        on_outcome: Callable[[SubmissionOutcome], None],
        name: str | None,
        envelope: Envelope | None,
    ) -> None:
        payloads = decode(
            data,
            headers.content_type,
            headers.content_encoding,
            self._limits,
            start,
            document=headers.document,
            in_loop=True,
        )
        if len(payloads) > self._max_payloads_in_loop:
            raise TooMuchWorkError
        stream = headers.stream
        key = _check_key(headers.idempotency_key, name, stream)
        submit, number = self._intake.submit, stream.number
        if envelope is None:
            submit(payloads, key, on_outcome, number, watch=bool(headers.wait))
            return
        size = sum(map(len, payloads), len(payloads) * (1 + envelope.size))
        self._check_size(size)
        if size > IN_LOOP_BYTES:
            raise TooMuchWorkError
        with self._more_memory(size - (len(data) - start), on_outcome) as releasing:
            submit(payloads, key, releasing, number, envelope=envelope, watch=bool(headers.wait))

    def _submit_compressed(
        self,
        headers: PostHeaders,
        data: bytes | bytearray,
        start: int,
        on_outcome: Callable[[SubmissionOutcome], None],
        name: str | None,
        envelope: Envelope | None,
    ) -> None:
        """Submit a compressed body; acquires memory for its decompressed bytes."""
        with self._more_memory(IN_LOOP_DECOMPRESSED_BYTES, on_outcome) as releasing:
            self._submit_now(headers, data, start, releasing, name, envelope)

    @contextmanager
    def _more_memory(
        self, size: int, on_outcome: Callable[[SubmissionOutcome], None]
    ) -> Iterator[Callable[[SubmissionOutcome], None]]:
        """Acquire memory until the callback that is yielded is called, or the body raises.

        Raises TooMuchWorkError if there is none.
        """
        size = max(0, size)
        if not self.memory.try_acquire(size):
            raise TooMuchWorkError
        try:
            yield self._releasing(size, on_outcome)
        except BaseException:
            self.memory.release(size)
            raise

    def _check_size(self, size: int) -> None:
        """Raise Problem TOO_LARGE if the payloads with their envelopes are too large."""
        if size > self.max_length:
            raise Problem(
                "TOO_LARGE",
                f"the payloads and what is stored around each of them (ENVELOPE) are {size} bytes;"
                f" allowed are {self.max_length} (MAX_LENGTH)",
            )

    async def _submit_lines(
        self,
        key: str | None,
        received: int,
        on_outcome: Callable[[SubmissionOutcome], None],
        stream: int,
        envelope: Envelope | None,
        watch: bool,  # noqa: FBT001 - bound by submit alone
        lines: Lines,
    ) -> None:
        """Submit the payloads of a large body of which ``received`` bytes were received."""
        size = len(lines.text)
        if envelope is not None:
            size += len(lines.sizes) * envelope.size
        more = max(0, size - received)
        self.memory.acquire_beyond_bound(more)
        on_outcome = self._releasing(more, on_outcome)
        try:
            if envelope is not None:
                self._check_size(size)
            await self._intake.submit_lines(
                lines.text, lines.sizes, key, on_outcome, stream, envelope=envelope, watch=watch
            )
        except Exception as error:  # noqa: BLE001 - it is answered, and logged where it is a bug
            on_outcome(as_problem(error))

    def _releasing(
        self, size: int, on_outcome: Callable[[SubmissionOutcome], None]
    ) -> Callable[[SubmissionOutcome], None]:
        """Return a callback that releases ``size`` bytes and then calls ``on_outcome``."""

        def release(outcome: SubmissionOutcome) -> None:
            self.memory.release(size)
            on_outcome(outcome)

        return release

    def timeout_problem(self) -> Problem:
        """Return the 408 for a request that did not arrive in time."""
        return Problem("TIMEOUT", f"the request took longer than {self.timeout:g} seconds")


def as_problem(error: Exception) -> Problem:
    """Return the answer for an error that kept a request from being accepted."""
    match error:
        case Problem():
            return error
        case KeyReusedError() | StoreRefusedError():
            return Problem(error.code, error.detail)
        case RefusedError():
            return refusal_problem(error)
        case TooLargeError():
            return Problem("TOO_LARGE", str(error))
        case _:
            return internal_error(error)


def _check_key(key: str | None, client: str | None, stream: Stream) -> str | None:
    """Return a valid Idempotency-Key, unique to the stream, and to the client if it has a name.

    Otherwise a client could find out the keys of another one, and use them up; and a client whose
    keys are offsets in its files would lose the second of two streams. A key of the default stream
    and of a client without a name stays as it is: journals of earlier versions have such keys.
    No part contains a NUL, so no two of the results are equal. Raises Problem MALFORMED.
    """
    if key is None:
        return None
    if not _KEY.fullmatch(key):
        raise Problem("MALFORMED", "Idempotency-Key must be 1 to 255 visible ASCII characters")
    own = key if client is None else f"{client}\0{key}"
    return f"\0{stream.name}\0{own}" if stream.number else own


def closes_connection(health: Health, *, unread_body: bool = False) -> bool:
    """Return whether the connection closes after an answer.

    ``unread_body``: a part of the request's body was not read before the answer. It may still
    arrive, and a server that kept the connection would read it as the next request: a client could
    smuggle a request past a proxy (RFC 9112, sections 9.3 and 11.2).
    """
    return unread_body or health.phase == "draining"


def internal_error(error: Exception) -> Problem:
    """Log an unexpected error, and return the 500."""
    log.error("request_failed", exc_info=error)
    return Problem("INTERNAL", "this is a bug; the log of the daemon has details")
