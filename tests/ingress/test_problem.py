"""Error answers."""

from __future__ import annotations

import json

import pytest

from payloadd.ingress.problem import Problem
from tests.ingress.rig import COLLECTION, post, running


def test_controls_in_a_detail_are_escaped() -> None:
    """Otherwise a client's input that a detail repeats could rewrite a terminal."""
    detail = "not 'a\x9b2Jb\u202ec\u2028\x7f' but ü"
    body = Problem("MALFORMED", detail).document()
    assert rb"a\u009b2Jb\u202ec\u2028\u007f' but " in body
    assert "ü".encode() in body
    assert json.loads(body)["detail"] == detail


@pytest.mark.parametrize("header", ["Content-Type", "Content-Encoding", "Idempotency-Key"])
@pytest.mark.usefixtures("each_way")
async def test_a_refused_header_is_repeated_without_its_controls(header: str) -> None:
    """Otherwise the header of a client could reach a terminal in the answer."""
    headers = ["Content-Type: application/json", f"{header}: a\x9b2J\u00adb"]
    async with running() as rig, rig.wire() as wire:
        request = post(COLLECTION, *headers[header == "Content-Type" :])
        await wire.send(request.decode().encode("latin-1"))
        answer = await wire.answer()
        assert answer.status in {400, 415}
        assert not set(answer.body.decode()) & set("\x9b\u00ad")
