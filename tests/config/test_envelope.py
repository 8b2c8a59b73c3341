"""The setting ENVELOPE is parsed, or refused with the reason."""

from __future__ import annotations

import pytest

from payloadd.config.envelope import EnvelopeFields, envelope


def test_all_members_are_parsed() -> None:
    """An operator could not choose some of them."""
    text = "headers:CE-*, stream,name , received_at,client,headers:x-github-event"
    assert envelope(text) == EnvelopeFields(
        received_at=True, client=True, name=True, stream=True, headers=("ce-*", "x-github-event")
    )
    assert envelope("name") == EnvelopeFields(
        received_at=False, client=False, name=True, stream=False, headers=()
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("payload", "'payload' is none of them"),
        ("name,,client", "'' is none of them"),
        ("Name", "'Name' is none of them"),
        ("name,name", "'name' is there twice"),
        ("headers:", "'' cannot be a header's name"),
        ("headers:a b", "'a b' cannot be a header's name"),
        ("headers:authorization", "contains credentials"),
        ("headers:Cookie", "contains credentials"),
        ("headers:set-cookie", "contains credentials"),
        ("headers:proxy-authorization", "contains credentials"),
        ("headers:x-forwarded-authorization", "contains credentials"),
    ],
)
def test_a_wrong_value_is_refused_with_its_reason(text: str, reason: str) -> None:
    """The daemon would store something else than the operator has asked for, or credentials."""
    with pytest.raises(ValueError, match=reason.replace("*", r"\*")):
        envelope(text)
