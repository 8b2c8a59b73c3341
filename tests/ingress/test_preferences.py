"""The header Prefer is read as RFC 7240 says."""

from __future__ import annotations

import json
import uuid

import pytest

from payloadd.ingress.preferences import accepted, seconds_to_wait
from payloadd.pipeline.intake import Receipt, StoredObjects


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("", None),
        ("wait=10", 10),
        ("Wait = 10", 10),
        ('wait="10"', 10),
        ("respond-async, wait=10", 10),
        ("respond-async,wait=10", 10),
        ('foo; bar="a, wait=3", wait=10', 10),
        ("wait=10; a; b=c", 10),
        (", ,wait=10,", 10),
        ("wait=0", 0),
        ("wait=10, wait=20", 10),
        ("wait=99999999999999999999", 2**31),
        ("respond-async", None),
        ("wait", None),
        ("wait=", None),
        ("wait=ten", None),
        ("wait=-1", None),
        ("wait=1.5", None),
        ("wait=1 2", None),
        ("waits=10", None),
        ("(), wait=10", None),
        ('"wait=10', None),
        ("wait=\xb2", None),
        ("handling=lenient, return=minimal", None),
        ("wait=10" + "," * 2000, None),
    ],
)
def test_the_preference_wait_is_found_as_the_rfc_says(
    header: str | None, seconds: int | None
) -> None:
    """A request would wait although its client has not asked for it, or not wait."""
    assert seconds_to_wait(header) == seconds


def test_the_answer_lists_the_objects_and_the_number_of_those_left_out() -> None:
    """A client could not tell a whole list from a part of it."""
    receipt = Receipt(uuid.UUID(int=7), 3)
    answer = accepted(receipt, StoredObjects(["a\u009b", '"'], 0), 5)
    assert (answer.status, answer.waited) == (201, 5)
    assert json.loads(answer.body) == {
        "id": str(receipt.id), "accepted": 3, "objects": ["a\u009b", '"'],
    }  # fmt: skip
    assert b"\\u009b" in answer.body
    assert json.loads(accepted(receipt, StoredObjects(["a"], 9), 5).body)["more_objects"] == 9
    assert accepted(receipt, None, 5)[::2] == (202, None)
