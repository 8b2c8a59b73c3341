"""Submit a request from a task that waits for the answer, as the Quart handler does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from payloadd.errors import RefusedError
from payloadd.ingress.preferences import Accepted, accepted, receipt_document
from payloadd.ingress.submission import as_problem
from payloadd.pipeline.intake import Receipt

if TYPE_CHECKING:
    from collections.abc import Callable

    from payloadd.ingress.preferences import WaitOutcome
    from payloadd.ingress.submission import PostHeaders, SubmissionOutcome, Submitter


def do_nothing() -> None:
    """Do nothing: no memory is counted."""


async def submit_and_wait(
    submitter: Submitter,
    headers: PostHeaders,
    data: bytes,
    address: Callable[[], str | None],
    name: str | None,
    on_commit: Callable[[], object],
) -> Accepted:
    """Submit one request, whole or not at all, and return the answer: a 202 or a 201.

    ``address`` returns the client's address, and ``name`` is what ``check`` returned.
    The caller calls ``check`` before, and accounts for the memory of ``data`` until this method
    returns, or calls ``on_commit`` because it waits for an upload. If the caller is cancelled,
    that memory stays acquired until the request is finished.

    Raises Problem.
    """
    answered = trio.Event()
    outcomes: list[SubmissionOutcome | Accepted] = []
    recorded = abandoned = False
    size = len(data)

    def record(outcome: SubmissionOutcome) -> None:
        nonlocal recorded
        recorded = True
        if abandoned:
            submitter.memory.release(size)
        elif isinstance(outcome, Receipt) and headers.wait:
            on_commit()
            submitter.waits.begin(outcome, headers.wait, finish, tasks=1)
            return
        outcomes.append(outcome)
        answered.set()

    def finish(receipt: Receipt, outcome: WaitOutcome, waited: int | None = None) -> None:
        if isinstance(outcome, RefusedError):
            outcomes.append(outcome)
        else:
            outcomes.append(accepted(receipt, outcome, waited))
        answered.set()

    submitter.submit(headers, data, 0, record, address, name, lambda: abandoned)
    del data  # the payloads of a committed request are not needed while it waits
    try:
        await answered.wait()
    except trio.Cancelled:
        # The client is gone, but the request still waits to be decoded or committed. Unless its
        # memory stays acquired, a client that resets its requests could fill the memory with
        # bodies that are not counted.
        if not recorded:
            abandoned = True
            submitter.memory.acquire_beyond_bound(size)
        raise
    outcome = outcomes.pop()
    if isinstance(outcome, Accepted):
        return outcome
    if isinstance(outcome, Receipt):
        return Accepted(202, receipt_document(outcome))
    try:
        raise as_problem(outcome)
    finally:
        # The traceback of the exception holds this frame, and so would keep the body until a
        # garbage collection.
        del outcome
