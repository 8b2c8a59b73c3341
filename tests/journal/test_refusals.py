"""The texts of refusals, which are the same for every durable journal."""

from __future__ import annotations

from unittest.mock import Mock

import pytest

from payloadd.journal import refusals


@pytest.mark.parametrize(("dead_bytes", "dead"), [(0, ""), (30, ", 30 of them by dead letters")])
def test_a_full_journal_names_what_fills_it(dead_bytes: int, dead: str) -> None:
    """An operator would raise JOURNAL_MAX_BYTES where dead letters take the space."""
    listener = Mock(seconds_for=lambda payloads: payloads)
    refusal = refusals.journal_full(listener, 100, 90, dead_bytes, 70)
    detail = f"the request does not fit: 90 of 100 bytes (JOURNAL_MAX_BYTES) are in use{dead}"
    assert (refusal.code, refusal.detail) == ("JOURNAL_FULL", detail)
    assert refusal.least_wait == 7, "the time for a tenth of the payloads"


def test_a_failed_write_says_whether_the_request_is_accepted() -> None:
    """A client would not know whether it may send its payloads again."""
    found = [refusals.not_written("full"), refusals.in_doubt("full", "not known yet")]
    assert [(one.code, one.least_wait) for one in found] == [("DISK_ERROR", 5)] * 2
    assert [one.detail for one in found] == [
        "the journal cannot be written: full; nothing of this request was accepted",
        "the journal cannot be written: full; not known yet",
    ]
