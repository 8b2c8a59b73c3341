"""The answer to an accepted request."""

from __future__ import annotations

import json
import uuid

from hypothesis import given
from hypothesis import strategies as st

from payloadd.ingress.submission import receipt_document
from payloadd.pipeline.intake import Receipt


@given(st.integers(0, 2**128 - 1), st.integers(0, 10**9))
def test_the_answer_contains_the_id_as_a_uuid(number: int, payloads: int) -> None:
    """The id is formatted without ``str(uuid)``, and must be equal to it."""
    receipt = Receipt(uuid.UUID(int=number), payloads)
    assert json.loads(receipt_document(receipt)) == {"id": str(receipt.id), "accepted": payloads}
