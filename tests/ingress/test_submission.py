"""The answer to an accepted request."""

from __future__ import annotations

import json
import uuid

from hypothesis import given
from hypothesis import strategies as st

from payloadd.ingress.submission import document
from payloadd.pipeline.intake import Receipt


@given(st.integers(0, 2**128 - 1), st.integers(0, 10**9))
def test_the_answer_names_the_request_by_its_uuid(number: int, payloads: int) -> None:
    """It is written without ``str(uuid)``."""
    receipt = Receipt(uuid.UUID(int=number), payloads)
    assert json.loads(document(receipt)) == {"id": str(receipt.id), "accepted": payloads}
