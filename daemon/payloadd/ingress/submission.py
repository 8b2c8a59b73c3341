"""What a POST of payloads comes to, whichever way it came in.

The Quart handler and the plain lane both end here, so what one of them takes the other
takes, and refuses for the same reason.
"""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

from payloadd.errors import RefusedError, TooLargeError
from payloadd.ingress.body import IN_LOOP_BOUNDS, Limits, check_headers, decode
from payloadd.ingress.decompression import TooMuchWorkError
from payloadd.ingress.large_bodies import LargeBodies, LargeBody, Lines
from payloadd.ingress.problem import Problem, refused
from payloadd.ingress.switch_interval import Switching
from payloadd.observe.logs import get_logger
from payloadd.pipeline.intake import Receipt

if TYPE_CHECKING:
    from collections.abc import Callable

    from payloadd.config.settings import Settings
    from payloadd.ingress.request_memory import RequestMemory
    from payloadd.observe.health import Health
    from payloadd.pipeline.intake import Intake

log = get_logger(__name__)

# Errors that can be known before the body has been read. A connection on which the rest of a
# body may still come is of no use for another request.
_EARLY: Final = frozenset({404, 405, 408, 413, 415})
_PAYLOADS_IN_LOOP: Final = 2_000
"""Payloads of one request from which it takes the loop more than a millisecond to join them."""
_JOBS_IN_LOOP: Final = 256
"""The same for jobs that they make."""
_KEY: Final = re.compile(r"[\x21-\x7e]{1,255}")


class PostHeaders(NamedTuple):
    """The headers that a POST goes by, None where there is none; one that came twice is joined."""

    content_type: str | None
    content_encoding: str | None
    idempotency_key: str | None


SubmissionOutcome = Receipt | RefusedError | Problem
"""What became of a request."""


class Submitter:
    """Takes bodies to the pipeline."""

    def __init__(
        self, intake: Intake, health: Health, settings: Settings, memory: RequestMemory
    ) -> None:
        self._intake = intake
        self._health = health
        self._limits = Limits(settings.max_length, settings.max_payloads)
        self._most_in_loop = min(_PAYLOADS_IN_LOOP, _JOBS_IN_LOOP * settings.batch_max_payloads)
        self.max_length = settings.max_length
        self.timeout = settings.request_timeout
        self.memory = memory
        self.switching = Switching()
        self.large = LargeBodies(
            self._limits, self.timeout, memory.wait_paid_back, self.switching.busy
        )

    async def run(self) -> None:
        """Do what requests wait for, for ever."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.switching.run)
            nursery.start_soon(self.memory.run)
            nursery.start_soon(self.large.run)

    def check(self, headers: PostHeaders) -> None:
        """Raise the Problem that is known before the body is read, if there is one."""
        # What is on disk outlives the drain: nobody has to be turned away for a restart.
        draining = self._health.phase == "draining" and not self._intake.durable
        if draining and (refusal := self._intake.refusal()):
            raise refused(refusal)
        check_headers(headers.content_type, headers.content_encoding)

    async def take(self, headers: PostHeaders, data: bytes, client: str | None) -> bytes:
        """Take one request of ``client``, whole or not at all, and return the body of the 202.

        Raises Problem. ``check`` comes before. The caller accounts for the memory of ``data`` until
        this returns. If the caller is cancelled, that memory stays taken until the request is done.
        """
        answered = trio.Event()
        outcomes: list[SubmissionOutcome] = []
        abandoned = False

        def done(outcome: SubmissionOutcome) -> None:
            outcomes.append(outcome)
            answered.set()
            if abandoned:
                self.memory.release(len(data))

        self.submit(headers, data, 0, done, lambda: client)
        try:
            await answered.wait()
        except trio.Cancelled:
            # The client is gone, and the request still waits to be decoded or committed. A client
            # that resets its requests would fill the memory with bodies that are counted nowhere.
            if not outcomes:
                abandoned = True
                self.memory.overdraw(len(data))
            raise
        outcome = outcomes.pop()
        if isinstance(outcome, Receipt):
            return document(outcome)
        try:
            raise as_problem(outcome)
        finally:
            # Its traceback has this frame, and with it the body: as above.
            del outcome

    def submit(
        self,
        headers: PostHeaders,
        data: bytes | bytearray,
        start: int,
        done: Callable[[SubmissionOutcome], None],
        client: Callable[[], str | None],
    ) -> None:
        """Do the same without waiting: ``done`` hears what comes of it.

        The body begins at ``start`` of ``data``. The caller accounts for its memory until ``done``.
        ``client`` returns the client's address, and is only called for large bodies.

        Raises Problem for what is known at once; ``done`` is not called then.
        """
        try:
            if headers.content_encoding is None:
                self._submit_now(headers, data, start, done)
            else:
                self._submit_compressed(headers, data, start, done)
        except TooMuchWorkError:
            self._submit_large(headers, data, start, done, client())
        except Problem:
            raise  # not from itself: such a cycle keeps the body until a garbage collection
        except Exception as error:
            raise as_problem(error) from error

    def _submit_now(
        self,
        headers: PostHeaders,
        data: bytes | bytearray,
        start: int,
        done: Callable[[SubmissionOutcome], None],
    ) -> None:
        content_type, content_encoding, key = headers
        payloads = decode(data, content_type, content_encoding, self._limits, start, in_loop=True)
        if len(payloads) > self._most_in_loop:
            raise TooMuchWorkError
        self._intake.submit(payloads, _checked(key), done)

    def _submit_compressed(
        self,
        headers: PostHeaders,
        data: bytes | bytearray,
        start: int,
        done: Callable[[SubmissionOutcome], None],
    ) -> None:
        """Do it with the memory for what it is decompressed to in the event loop."""
        if not self.memory.take(IN_LOOP_BOUNDS):
            raise TooMuchWorkError
        try:
            self._submit_now(headers, data, start, self._releasing(IN_LOOP_BOUNDS, done))
        except BaseException:
            self.memory.release(IN_LOOP_BOUNDS)
            raise

    def _submit_large(
        self,
        headers: PostHeaders,
        data: bytes | bytearray,
        start: int,
        done: Callable[[SubmissionOutcome], None],
        client: str | None,
    ) -> None:
        content_type, content_encoding, key = headers
        take = partial(self._take_lines, _checked(key), len(data) - start, done)
        body = LargeBody(data, start, content_type, content_encoding, take, done, client)
        self.large.add(body)

    async def _take_lines(
        self,
        key: str | None,
        received: int,
        done: Callable[[SubmissionOutcome], None],
        lines: Lines,
    ) -> None:
        """Submit what a large body of ``received`` bytes holds."""
        more = max(0, len(lines.text) - received)
        self.memory.overdraw(more)
        done = self._releasing(more, done)
        try:
            await self._intake.submit_lines(lines.text, lines.sizes, key, done)
        except Exception as error:  # noqa: BLE001 - it is answered, and logged where it is a bug
            done(as_problem(error))

    def _releasing(
        self, size: int, done: Callable[[SubmissionOutcome], None]
    ) -> Callable[[SubmissionOutcome], None]:
        """Return ``done`` with memory given back before it."""

        def release(outcome: SubmissionOutcome) -> None:
            self.memory.release(size)
            done(outcome)

        return release

    def too_slow(self) -> Problem:
        """Return the 408 for a request that was not there in time."""
        return Problem("TIMEOUT", f"the request took longer than {self.timeout:g} seconds")


def document(receipt: Receipt) -> bytes:
    """Return the body of a 202."""
    # As str(receipt.id), at half its cost.
    digits = b"%032x" % receipt.id.int
    return b'{"id":"%b-%b-%b-%b-%b","accepted":%d}' % (
        digits[:8],
        digits[8:12],
        digits[12:16],
        digits[16:20],
        digits[20:],
        receipt.payloads,
    )


def as_problem(error: Exception) -> Problem:
    """Return the answer for what kept a request from being taken."""
    match error:
        case Problem():
            return error
        case RefusedError():
            return refused(error)
        case TooLargeError():
            return Problem("TOO_LARGE", str(error))
        case _:
            return bug(error)


def _checked(key: str | None) -> str | None:
    """Return an Idempotency-Key as it is; raises Problem MALFORMED."""
    if key is not None and not _KEY.fullmatch(key):
        raise Problem("MALFORMED", "Idempotency-Key: allowed are 1 to 255 visible ASCII characters")
    return key


def closes(health: Health, status: int, *, has_body: bool) -> bool:
    """Return whether an answer is the last one of its connection."""
    return health.phase == "draining" or (has_body and status in _EARLY)


def bug(error: Exception) -> Problem:
    """Log an error that nobody foresaw, and return the 500."""
    log.error("request_failed", exc_info=error)
    return Problem("INTERNAL", "this is a bug; the log has more")
